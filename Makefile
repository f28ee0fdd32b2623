# The one front door. Every target sets up what it needs: a virtual environment in the tree with the locked dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := 0.13.8
DEMO_PATH ?= .
KILL ?= orchestrator
ONLY ?=
KILLS ?= 20
SECONDS ?= 0
SEED ?=

.PHONY: help demo up test check gen bench chaos migrate lock setup clean
help: ## these lines
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(READY) ## stamp a copy of this tree (or DEMO_PATH=folder) on a mesh of its own, and kill -9 a node (KILL=node) meanwhile
	@$(BIN)/omnibridge demo --kill "$(KILL)" "$(DEMO_PATH)"

up: $(READY) ## run the mesh in the foreground until Ctrl-C
	@$(BIN)/omnibridge up

test: $(READY) ## all tests
	$(BIN)/pytest -n 2 --dist loadfile

check: $(READY) ## what CI runs before the tests: style, types, contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python protos/generate.py --check

gen: $(READY) ## generate gen/ from protos/, and docs/settings.md from the code
	$(BIN)/buf format --write
	$(BIN)/python protos/generate.py
	$(BIN)/python -m tests.contracts.settings_page

bench: $(READY) ## every benchmark, or ONLY=name,name
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only "$(ONLY)")

chaos: $(READY) ## kill, cut and pause a store under load, then check everything; KILLS=20, SECONDS at least, SEED of an earlier run
	@$(BIN)/python -m tests.chaos --kills "$(KILLS)" --seconds "$(SECONDS)" $(if $(SEED),--seed "$(SEED)")
	@$(BIN)/pytest -q -m long

migrate: $(READY) ## bring the database of DATABASE_URL to the newest schema
	@$(BIN)/omnibridge migrate up

lock: $(READY) ## resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-emit-index-url --group dev pyproject.toml -o requirements.lock

setup: $(READY) ## only the virtual environment

clean: ## remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The lock holds versions and hashes and no addresses, so it installs from whatever registry or mirror the machine is set up for.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "omnibridge needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "this Python has no venv: install the package python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv (Debian, Ubuntu), then run make again" >&2; exit 1; }
	@echo "setting up $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet uv==$(UV)
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
