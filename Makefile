# make bench       environment, embedded target, and a representative slice of the benchmark
# make test        environment and the whole test suite
# make small-run   from nothing to a measured EAGLE-3 head: data, training, benchmark
# make vllm        an environment of its own for vLLM, in .venv-vllm or $OUTRIDER_VLLM
# make llama       llama.cpp's server and tools, compiled in .llama.cpp or $OUTRIDER_LLAMA
# make bench-vllm  vLLM beside our engine on the same prompts: builds that environment first
# make test-vllm   exported heads draft on vLLM what they draft here: builds that environment first
# make heads-archive   the heads of checkpoints/ in one file, for `outrider fetch heads` beside an installed wheel
# make docs        the site of docs/, in site/; a broken link or anchor is an error
# make check       lint, types, the site and tests: the gate, at home and in CI

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench bench-copy bench-batch bench-memory small-run bench-full bench-lookup bench-ops heads-archive peers vllm llama bench-vllm test test-vllm lint docs check clean

bench: $(READY)
	$(BIN)/outrider bench --preset quick

bench-copy: $(READY)
	$(BIN)/outrider bench --preset copy

bench-full: $(READY)
	$(BIN)/outrider bench --preset full

small-run: $(READY)
	$(BIN)/outrider synthesize --output runs/small/data --num-prompts 400 --max-new-tokens 160 --temperatures 0 0.7 --shard-size 100 --max-batch 32
	test -d runs/small/eagle3/final || $(BIN)/outrider train eagle3 $$(test -f runs/small/eagle3/config.json && echo --resume || echo \
		--data runs/small/data --features cached --draft-vocab 8192 --num-depths 3 --decay 1 --norm-before-fc --norm-before-residual --norm-output --epochs 3 \
		--row-length 512 --rows 2 --eval-every 100 --real-tau-every 0 --save-dtype bfloat16 --run-dir) runs/small/eagle3
	$(BIN)/outrider bench --preset small-run

bench-batch: $(READY)
	$(BIN)/outrider bench --preset batch

bench-memory: $(READY)
	$(BIN)/python benchmarks/memory.py

bench-lookup: $(READY)
	$(BIN)/python benchmarks/lookup.py

bench-ops: $(READY)
	$(BIN)/python benchmarks/ops.py

heads-archive: $(READY)
	$(BIN)/python dev/archive_heads.py checkpoints dist/outrider-heads.zip

peers: $(READY)
	-$(BIN)/python -m outrider.vllm.environment
	$(BIN)/python benchmarks/peers/build.py
	$(BIN)/python benchmarks/peers/same_file.py
	$(BIN)/outrider bench --preset engines
	$(BIN)/python benchmarks/peers/run.py

vllm: $(READY)
	$(BIN)/python -m outrider.vllm.environment

llama: $(READY)
	$(BIN)/python -m outrider.llama_cpp.environment

bench-vllm: vllm
	$(BIN)/outrider bench --preset vllm

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term-missing:skip-covered

test-vllm: vllm
	OUTRIDER_TEST_VLLM=1 $(BIN)/python -m pytest tests/vllm -s -rs

lint: $(READY)
	$(BIN)/ruff format --no-cache --check src tests benchmarks dev examples tools
	$(BIN)/ruff check --no-cache src tests benchmarks dev examples tools
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/zensical build --strict --clean

check: lint docs test

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .cache site

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Outrider needs Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON=python3.12 or the like")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
