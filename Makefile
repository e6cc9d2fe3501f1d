# make bench   environment, embedded target, and a representative slice of the benchmark
# make test    environment and the whole test suite
# make check   lint, types and tests: the gate, at home and in CI

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench bench-copy bench-full bench-lookup bench-ops test lint check clean

bench: $(READY)
	$(BIN)/outrider bench --preset quick

bench-copy: $(READY)
	$(BIN)/outrider bench --preset copy

bench-full: $(READY)
	$(BIN)/outrider bench --preset full

bench-lookup: $(READY)
	$(BIN)/python benchmarks/lookup.py

bench-ops: $(READY)
	$(BIN)/python benchmarks/ops.py

test: $(READY)
	$(BIN)/python -m pytest --cov=src/outrider --cov-branch --cov-report=term-missing:skip-covered

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Outrider needs Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON=python3.12 or the like")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
