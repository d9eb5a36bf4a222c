PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-oldest slow lint docs tables bench gpu

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

# The tests with the oldest release of each dependency that pyproject.toml allows, before each release of this library.
OLDEST := .venv-oldest
$(OLDEST)/ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[dev]'
	touch $@

test-oldest: $(OLDEST)/ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest --numprocesses=auto --dist=loadfile

slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation site in site/, without a network; a warning, such as a link that leads nowhere, is an error.
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The tables and curves of the README and of the documentation, from the results files.
tables: $(VENV)/ready
	$(BIN)/python -m umeta.report.tables README.md $(sort $(shell find docs -name '*.md'))
	$(BIN)/python -m bench.table README.md docs/speed.md docs/pictures.md docs/scaling.md

# Speed and memory beside other libraries (about 25 minutes); BENCH="maml kmeans" for some of it. The libraries go into
# an environment of their own.
BENCH_PYTHON := bench/.venv/bin/python
bench/.venv/ready: $(VENV)/ready bench/install.py
	$(BIN)/python bench/install.py bench/.venv
	touch $@

bench: bench/.venv/ready
	$(BENCH_PYTHON) -m bench $(BENCH)
	$(BENCH_PYTHON) -m bench.table README.md docs/speed.md

# Tests and speed on a graphics card (8 minutes), with the PyTorch that `python3` has: no network, no other set-up.
gpu:
	$(PYTHON) -m bench.gpu
