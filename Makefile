PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint tables bench

# Set-up once: a virtual environment with the project and its development tools (about 3 minutes, 7 GB).
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# See it work, in minutes: on Omniglot, and in an environment. It goes on where an interrupted one stopped.
demo: $(VENV)/ready
	$(BIN)/umeta demo --resume

# A process a core, each with one thread: the networks of tests are too small for two.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

# The README's tables, from the results files.
tables: $(VENV)/ready
	$(BIN)/python -m umeta.report.tables README.md docs/results.md
	$(BIN)/python -m bench.table README.md docs/speed.md

# Speed and memory beside other libraries (about 25 minutes); BENCH="maml kmeans" for some of it. The libraries go into
# an environment of their own.
BENCH_PYTHON := bench/.venv/bin/python
bench/.venv/ready: $(VENV)/ready bench/install.py
	$(BIN)/python bench/install.py bench/.venv
	touch $@

bench: bench/.venv/ready
	$(BENCH_PYTHON) -m bench $(BENCH)
