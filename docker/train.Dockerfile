# Two images: `train` for the pipeline and the sweep; `tracking`, without PyTorch, for the servers of MLflow and of
# Optuna's dashboard, with clients of PostgreSQL and S3. Context: the project's folder.
#
#   docker build -f docker/train.Dockerfile --target train --secret id=pip,src=docker/pip.conf -t mme-train .
#
# TORCH_BUILD and the secret `pip`: see serve.Dockerfile.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv /opt/mme
ENV PATH=/opt/mme/bin:$PATH
COPY requirements.lock ./

FROM base AS build-tracking
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c requirements.lock mlflow boto3 'psycopg[binary]' optuna optuna-dashboard && pip uninstall --yes pip

FROM ${PYTHON_IMAGE} AS tracking
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent mme
COPY --from=build-tracking /opt/mme /opt/mme
ENV PATH=/opt/mme/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
USER 10001:10001
WORKDIR /tmp

FROM base AS build-train
ARG TORCH_BUILD=cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c requirements.lock "torch==$(sed -n 's/^torch==//p' requirements.lock)${TORCH_BUILD:++${TORCH_BUILD}}"
COPY pyproject.toml README.md LICENSE ./
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    mkdir -p src/mme serving && touch src/mme/__init__.py serving/__init__.py && \
    PIP_CONSTRAINT=requirements.lock pip install '.[train,remote]'
COPY src ./src
COPY serving ./serving
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_CONSTRAINT=requirements.lock pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE} AS train
# The fonts write class names of most scripts into the pictures.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git fonts-noto-cjk fonts-noto-core && rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --no-create-home --home-dir /tmp mme
COPY --from=build-train /opt/mme /opt/mme
# The checkout is mounted at /project, and its code takes precedence over the image's: DVC hashes the files there. It may
# belong to another user than the container's, which git allows for safe directories only.
ENV PATH=/opt/mme/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/project/src:/project HOME=/tmp \
    DVC_NO_ANALYTICS=true DVC_SITE_CACHE_DIR=/project/.work/dvc MPLCONFIGDIR=/tmp/matplotlib \
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 \
    GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=/project
USER 10001:10001
WORKDIR /project
CMD ["dvc", "repro", "register"]
