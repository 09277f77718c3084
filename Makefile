# Everything that a person or a CI machine does with this repository.
# Needs Python 3.11 or newer and make; uv brings all else, buf included, from PyPI.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# The interpreter that exists is used; none is downloaded.
export UV_PYTHON_DOWNLOADS := never
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
ifeq ($(PYTHON),)
$(error Remit needs Python 3.11 or newer; none is on PATH)
endif

# uv on PATH if it is of the version that wrote uv.lock, else one of our own.
# (The parenthesis before the pattern balances the one after it, which make would take for its own.)
UV_VERSION := 0.13.9
UV := $(shell case "$$(uv --version 2>/dev/null)" in ("uv 0.13."*) command -v uv;; esac)
ifeq ($(UV),)
UV := .uv/$(UV_VERSION)/bin/uv
UV_INSTALLED := $(UV)
endif

RUN := $(UV) run --locked --extra up
RUN_WITHOUT_DEV := $(UV) run --locked --extra up --no-dev

# More arguments for `remit up`, pytest or the benchmark: make up ARGS="--replicas policy=2"
ARGS ?=
# A worker a core: the suite is bound by the processor, and each worker has its own PostgreSQL and often a
# mesh of ten processes beside it.
PYTEST_WORKERS ?= --numprocesses=$(shell $(PYTHON) -c 'import os; \
	print(min(4, os.cpu_count() or 1))') --dist=loadfile --no-loadscope-reorder

.PHONY: help
help: ## List the targets
	@$(PYTHON) -c 'import re; text = open("Makefile").read(); \
	[print(f"  make {name:16} {why}") for name, why in \
	re.findall(r"^([a-z-]+):.*?## (.*)$$", text, re.M)]'

.uv/$(UV_VERSION)/bin/uv:
	@echo "uv $(UV_VERSION) is not on PATH; installing it into .uv/"
	@$(PYTHON) -m venv .uv/$(UV_VERSION)
	@.uv/$(UV_VERSION)/bin/python -m pip install --quiet --disable-pip-version-check \
		uv==$(UV_VERSION)

.PHONY: demo
demo: $(UV_INSTALLED) ## Set up, run an agent with a real tool, verify the record, stop
	@$(RUN_WITHOUT_DEV) remit demo $(ARGS)

.PHONY: up
up: $(UV_INSTALLED) ## Keep a whole mesh running on this machine (Ctrl-C stops it)
	@$(RUN_WITHOUT_DEV) remit up $(ARGS)

.PHONY: test
test: $(UV_INSTALLED) ## Run the tests (real PostgreSQL, Envoy and processes)
	$(RUN) pytest $(PYTEST_WORKERS) $(ARGS)

# Half of PyPI, which nothing of Remit needs, in an environment of its own.
PHOENIX_VERSION := 20.26.1
.PHONY: phoenix
phoenix: .cache/phoenix/bin/phoenix ## Install Phoenix, which shows traces; its test then runs

.cache/phoenix/bin/phoenix: $(UV_INSTALLED)
	$(UV) venv --quiet --clear --python $(PYTHON) .cache/phoenix
	$(UV) pip install --quiet --python .cache/phoenix/bin/python arize-phoenix==$(PHOENIX_VERSION)

.PHONY: test-storm
test-storm: $(UV_INSTALLED) ## Run the long randomised tests with kills
	$(RUN) pytest -m storm $(ARGS)

.PHONY: check
check: format lint types layers contracts stubs golden-check ## Run every static check

.PHONY: format
format: $(UV_INSTALLED)
	$(RUN) ruff format --check

.PHONY: lint
lint: $(UV_INSTALLED)
	$(RUN) ruff check

.PHONY: types
types: $(UV_INSTALLED)
	$(RUN) mypy

.PHONY: layers
layers: $(UV_INSTALLED)
	$(RUN) lint-imports --no-logo

.PHONY: contracts
contracts: google-protos
	$(RUN) buf lint protos
	$(RUN) buf breaking protos --against protos/baseline.binpb

.PHONY: google-protos
google-protos: $(UV_INSTALLED)
	@$(RUN) python scripts/google_protos.py

.PHONY: stubs
stubs: $(UV_INSTALLED)
	$(RUN) python scripts/protos.py --check

.PHONY: golden-check
golden-check: $(UV_INSTALLED)
	$(RUN) pytest -q -m golden

.PHONY: fix
fix: $(UV_INSTALLED) ## Format the code and apply the linter's safe fixes
	$(RUN) ruff check --fix
	$(RUN) ruff format

.PHONY: protos
protos: $(UV_INSTALLED) ## Make the Python stubs from the contracts
	$(RUN) python scripts/protos.py

.PHONY: baseline
baseline: google-protos ## Accept the contracts as they are: renew what `buf breaking` compares with
	$(RUN) buf build protos --exclude-source-info -o protos/baseline.binpb

.PHONY: golden
golden: $(UV_INSTALLED) ## Rewrite the golden files; read their diff before you commit it
	REMIT_GOLDEN=renew $(RUN) pytest -q -m golden

.PHONY: bench
bench: $(UV_INSTALLED) ## Measure calls, runs, streams, start-up; write docs/BENCHMARKS.md
	$(RUN) python -m tests.bench.mesh $(ARGS)

.PHONY: bench-ledger
bench-ledger: $(UV_INSTALLED) ## Measure the ledger, batched and one by one; write docs/BENCHMARKS.md
	$(RUN) python -m tests.bench.ledger $(ARGS)

.PHONY: bench-policy
bench-policy: $(UV_INSTALLED) ## Measure decisions of policy and a preview of 100,000; show them
	$(RUN) python -m tests.bench.policy $(ARGS)

.PHONY: bench-revocation
bench-revocation: $(UV_INSTALLED) ## Measure how soon what is taken away stops; write docs/BENCHMARKS.md
	$(RUN) python -m tests.bench.revocation $(ARGS)

.PHONY: bench-log
bench-log: $(UV_INSTALLED) ## Measure the audit log: appends, verification, bytes; write docs/BENCHMARKS.md
	$(RUN) python -m tests.bench.log $(ARGS)
