# The service: the package with the extras [serving,registry]; no DVC, Optuna or Lightning. Context: the project's folder.
#
#   docker build -f docker/serve.Dockerfile --secret id=pip,src=docker/pip.conf -t mme-serve .
#
# TORCH_BUILD is the label of PyTorch's wheel: `cpu`, or a CUDA build such as `cu130`; empty takes the wheel without a
# label. The address of their index is in the secret `pip`, a configuration file of pip, and in no layer.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_BUILD=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv /opt/mme
ENV PATH=/opt/mme/bin:$PATH
COPY requirements.lock ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c requirements.lock "torch==$(sed -n 's/^torch==//p' requirements.lock)${TORCH_BUILD:++${TORCH_BUILD}}"
# Libraries before sources, so that a change of the code does not install them again. All versions are the lock's: as a
# constraint it pins the packages of the extras and adds none.
COPY pyproject.toml README.md LICENSE ./
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    mkdir -p src/mme serving && touch src/mme/__init__.py serving/__init__.py && \
    PIP_CONSTRAINT=requirements.lock pip install '.[serving,registry]'
COPY src ./src
COPY serving ./serving
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_CONSTRAINT=requirements.lock pip install --no-deps --force-reinstall . && pip uninstall --yes pip

FROM ${PYTHON_IMAGE} AS serve
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent mme && install -d -o mme -g mme /var/cache/mme
COPY --from=build /opt/mme /opt/mme
ENV PATH=/opt/mme/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 \
    XDG_CACHE_HOME=/var/cache MME_HOST=0.0.0.0 MME_PORT=8000 MME_MODEL=/models/export
# Writes only to /var/cache/mme (models from a registry) and /tmp (uploads while they are decoded).
USER 10001:10001
WORKDIR /var/cache/mme
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['MME_PORT']}/ready\", timeout=4)"]
ENTRYPOINT ["python", "-m", "serving"]
