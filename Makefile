# The one menu: `make` prints it. Every target does its own set-up, so a fresh clone needs python3 (3.11 or newer), make and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UI_PORT ?= 5000
TEST_PROCESSES ?= 2

# DVC starts the stages with `python`, which is the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing phones home.
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help venv repro serve ablation sweep ui test stack-test check docs licences format bench lock clean

help: ## show this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make the virtual environment .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

repro: $(STAMP) ## run the pipeline: data, pretraining, finetuning, evaluation, registration
	$(BIN)/dvc repro register
	@$(BIN)/mme summary

serve: $(STAMP) ## answer requests on http://127.0.0.1:8000 with the model of `make repro`
	$(BIN)/python -m serving

sweep: $(STAMP) ## search mask ratio and trajectory length by short, probed trials (after `make repro`)
	$(BIN)/mme sweep
	$(BIN)/mme sweep report

ui: $(STAMP) ## browse and compare the recorded runs on http://127.0.0.1:5000
	$(BIN)/mlflow ui --port $(UI_PORT)

ablation: $(STAMP) ## pretrain with each objective under one budget and compare: reports/ablation.md
	$(BIN)/dvc repro trajectories
	$(BIN)/mme ablate

test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadscope

stack-test: $(STAMP) ## docker/compose.yaml without an engine; needs Debian's postgresql and prometheus
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m stack -s

check: $(STAMP) ## lint, formatting, types, import directions, images, compose file, alerts
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

docs: $(STAMP) ## the documentation site, in site/; warnings are errors
	$(BIN)/mkdocs build --strict

licences: $(STAMP) ## the licence of every installed package
	$(BIN)/pip-licenses --order=license

format: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## measure speed and the targets' errors, into reports/bench.json
	$(BIN)/python -m benchmarks

lock: ## resolve pyproject.toml afresh into requirements.lock
	rm -rf .work/lock && $(PYTHON) -m venv .work/lock
	.work/lock/bin/python -m pip install --disable-pip-version-check hatchling '.[dev]'
	@(sed -n '/^#/p' requirements.lock; .work/lock/bin/python -m pip freeze --all \
		| sed -E -e '/^(mme|pip|nvidia-|cuda-|triton)/d' -e 's/\+[a-z0-9.]+$$//') > .work/requirements.lock
	mv .work/requirements.lock requirements.lock

clean: ## remove caches and unfinished work; data, models, runs and .venv stay
	rm -rf .work build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dvc_plots
	find src serving tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
