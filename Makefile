# `make demo` and `make test` install what they need into .venv first; the second time that takes no time.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
DEMO_ROWS ?= 20000
DEMO_GRPC_PORT ?= 18500
DEMO_REST_PORT ?= 18501

# The locked Keras. Where pip knows no CPU build of torch this brings a large one; TORCH= names another.
KERAS = $(shell sed -n 's/^keras==\([0-9.]*\).*/\1/p' requirements.lock)
TORCH ?= torch==2.13.0
BACKEND_TESTS := -p no:cacheprovider tests/layers tests/embeddings/test_row_stores.py tests/collapse tests/optimizers/test_rules.py

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-backends lint lock clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 18

install: $(READY) ## Install everything into .venv

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else \
	  "mlet-tf needs Python 3.11; this is " + sys.version.split()[0] + ". Name one with make PYTHON=/path/to/python3.11")'
	@echo "Installing the locked packages into $(VENV) (about 4 GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet 'uv>=0.4'
	@# uv, because it installs TFX 1.16 on 3.11 in a minute; byte-compiled, because imports then take a third.
	@uv=$$(command -v uv || echo $(BIN)/uv) && \
	  $$uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock && \
	  $$uv pip install --python $(BIN)/python --no-deps -e .
	@touch $@

demo: $(READY) ## Raw rows to an answered CTR query: synthesise, train, collapse, gate, push, serve, ask
	$(BIN)/mlet-tf synth $(DEMO)/data/train.tsv --rows $(DEMO_ROWS) --vocabulary 300 --rank 2
	$(BIN)/mlet-tf run --config configs/demo.yaml
	$(BIN)/mlet-tf report $(DEMO)
	@echo "$(BIN)/mlet-tf serve --model_base_path $(DEMO)/serving/ctr  and  $(BIN)/mlet-tf predict $(DEMO)/data/train.tsv"
	@$(BIN)/mlet-tf serve --port $(DEMO_GRPC_PORT) --rest_api_port $(DEMO_REST_PORT) \
	  --model_base_path $(DEMO)/serving/ctr >$(DEMO)/serve.log 2>&1 & server=$$!; trap 'kill $$server' EXIT; \
	  $(BIN)/mlet-tf predict $(DEMO)/data/train.tsv --rows 5 --server 127.0.0.1:$(DEMO_REST_PORT) --wait 120 \
	  || { cat $(DEMO)/serve.log; exit 1; }
	@echo "The run: $(DEMO)/run.json   The report: $(DEMO)/report/report.html"

test: $(READY) ## Lint, types and tests, without the slow ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-backends: ## Tests of layers, optimizers and collapse on JAX and torch, in an environment without TensorFlow
	test -x .venv-backends/bin/python || $(PYTHON) -m venv .venv-backends
	.venv-backends/bin/python -m pip install --quiet keras==$(KERAS) jax pytest hypothesis $(TORCH)
	KERAS_BACKEND=torch .venv-backends/bin/python -m pytest $(BACKEND_TESTS)
	KERAS_BACKEND=jax .venv-backends/bin/python -m pytest $(BACKEND_TESTS)

test-slow: $(READY) ## The long tests
	$(BIN)/python -m pytest -m slow

lint: $(READY) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Write requirements.lock and requirements-gpu.lock anew from pyproject.toml
	uv pip compile pyproject.toml --all-extras --generate-hashes --python-version 3.11 --no-header --no-annotate \
	  --quiet -o requirements.lock
	echo 'tensorflow[and-cuda]' | uv pip compile - -c requirements.lock --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet -o requirements-gpu.lock

clean: ## Remove environments and run outputs
	rm -rf $(VENV) .venv-backends runs build *.egg-info
