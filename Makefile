# Everything one does with a checkout; each target installs what it needs into .venv first.

PYTHON ?= python3
TEST_WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed

# Ray starts many Python processes: without compiled bytecode each of them would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check format

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with the project and its tools (every other target does this first)

quickstart: $(STAMP)  ## search, retrain and rank pruned networks for three budgets on handwritten digits
	$(BIN)/tas-ray quickstart

# Two test workers share the cores, so each computes with one thread; the tests on clusters come first and run side by side.
test: $(STAMP)  ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## check format, lint, types and architecture (import contracts among others)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest tests/test_project.py

format: $(STAMP)  ## rewrite the sources in the project's format and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# uv, because pip prefers a wheel in a local folder to a newer one that fits the other packages.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
		"$(PYTHON) is Python %d.%d; the project needs 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	@touch $@
