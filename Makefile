# The two commands of the README (quickstart, test) make everything they need; the rest is for those who work on the code.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUTPUT ?= runs/quickstart

.PHONY: venv quickstart test test-fast lint format benchmarks clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

quickstart: venv  ## the whole road on made-up pictures
	$(BIN)/wiseft quickstart --output $(OUTPUT)

test: venv  ## everything; tests that need Slurm or real pictures say why they are skipped
	$(BIN)/python -m pytest

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
	$(BIN)/python -m benchmarks.data

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
