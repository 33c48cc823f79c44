# The two commands of the README (quickstart, test) make everything they need; the rest is for those who work on the code.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUTPUT ?= runs/quickstart
# Files of tests that run side by side: many of them wait for Slurm or for a server.
TESTERS ?= 2

.PHONY: venv quickstart test test-kills test-merge-kills test-matrix test-cluster test-fast lint format benchmarks clean

venv: $(VENV)/.installed

# clip-benchmark is a peer that tests compare with. Of its dependencies only those of ours are needed; transformers, which
# open_clip imports wherever it finds it, would slow every start down.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps clip-benchmark
	touch $@

quickstart: venv  ## the whole road on made-up pictures
	$(BIN)/wiseft quickstart --output $(OUTPUT)

test: venv  ## everything; tests that need Slurm or real pictures say why they are skipped
	$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile

test-kills: venv  ## a run killed at 20 random moments and resumed, for ZeRO 1, 2 and 3: a quarter of an hour
	WISEFT_KILLS=20 WISEFT_KILLED_STAGES=1,2,3 $(BIN)/python -m pytest tests/finetune/test_kills.py -s

test-merge-kills: venv  ## a merge killed at 50 random moments
	WISEFT_MERGE_KILLS=50 $(BIN)/python -m pytest tests/merge/test_merge_kills.py -s

test-matrix: venv  ## more variants of what `make test` shows: recipes, signals on Slurm, ranks and stages
	WISEFT_MATRIX=1 $(BIN)/python -m pytest -m matrix --ignore=tests/faults

test-cluster: venv  ## everything on a real Slurm, the whole matrix of faults among it: over an hour; its table goes to build/
	mkdir -p build
	WISEFT_MATRIX=1 WISEFT_FAULT_TABLE=build/faults.md $(BIN)/python -m pytest tests/cluster tests/faults

test-fast: venv  ## what takes seconds
	$(BIN)/python -m pytest -m "not slow and not slurm"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: venv
	$(BIN)/python -m benchmarks.evaluate
	$(BIN)/python -m benchmarks.evaluate_statistics
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.finetune
	$(BIN)/python -m benchmarks.merge
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.page

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
