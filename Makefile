# `make` prints the menu. Every target installs what it needs, so a fresh clone needs python3 (3.11 or newer), make and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UI_PORT ?= 5000

# Options of every test run. One thread per process: more threads than processors wait for each other.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

# DVC starts the stages by the command `python`: it must be that of the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Disable telemetry.
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help venv repro serve sweep ui ablation test slow-test stack-test check docs licences format bench lock clean

help: ## print this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## create the virtual environment .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

repro: $(STAMP) ## run the pipeline: data, pretraining, finetuning, evaluation, registration (15 minutes)
	$(BIN)/dvc repro register
	@$(BIN)/mme summary

serve: $(STAMP) ## start the service on http://127.0.0.1:8000 with the model of `make repro`
	$(BIN)/python -m serving

sweep: $(STAMP) ## search hyperparameters by short trials, ranked by a linear probe (after `make repro`)
	$(BIN)/mme sweep
	$(BIN)/mme sweep report

ui: $(STAMP) ## browse and compare the runs in MLflow on http://127.0.0.1:5000
	$(BIN)/mlflow ui --port $(UI_PORT)

ablation: $(STAMP) ## compare the pretraining targets under one budget: reports/ablation.md (an hour)
	$(BIN)/dvc repro trajectories
	$(BIN)/mme ablate

test: $(STAMP) ## run the quick tests (six minutes)
	$(PYTEST)

slow-test: $(STAMP) ## run the other tests: pipeline, sweeps, service, browser, stack; needs the Debian packages of .ci/run
	$(PYTEST) -m 'slow or browser or stack' --no-loadscope-reorder --durations 25

stack-test: $(STAMP) ## run the services of docker/compose.yaml without an engine; needs Debian's postgresql and prometheus
	$(PYTEST) -m stack tests/test_stack.py

check: $(STAMP) ## check style, formatting, types, imports, Dockerfiles, compose file and alerts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	@if command -v promtool > /dev/null; then \
		promtool check config docker/prometheus/prometheus.yml && promtool test rules docker/prometheus/alerts_test.yml; \
	else echo "no promtool (Debian's package prometheus): alerts are not checked"; fi

docs: $(STAMP) ## build the documentation site in site/; warnings are errors
	$(BIN)/mkdocs build --strict

licences: $(STAMP) ## print the licence of every installed package
	$(BIN)/pip-licenses --order=license

format: $(STAMP) ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## measure speed, memory and errors of the targets: reports/bench.json
	$(BIN)/python -m benchmarks

lock: ## resolve pyproject.toml anew into requirements.lock
	rm -rf .work/lock && $(PYTHON) -m venv .work/lock
	.work/lock/bin/python -m pip install --disable-pip-version-check hatchling '.[dev]'
	@(sed -n '/^#/p' requirements.lock; .work/lock/bin/python -m pip freeze --all \
		| sed -E -e '/^(mme|pip|nvidia-|cuda-|triton)/d' -e 's/\+[a-z0-9.]+$$//') > .work/requirements.lock
	mv .work/requirements.lock requirements.lock

clean: ## remove caches and unfinished work; keep data, models, runs and .venv
	rm -rf .work build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dvc_plots
	find src serving tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
