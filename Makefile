# One door to everything. `make` alone lists the targets. Only Python 3.11+, git and make are needed.

PYTHON ?= python3
# Recordings of the original code that `make parity` replays; give others with RECORDINGS="a b".
RECORDINGS ?= $(wildcard ../shared/golden/sa2va_internvl_* ../shared/golden/sa2va_qwen* ../shared/golden/sa2va_i ../shared/golden/qwen_vl)

# Tests that touch each dependency; `make lowest LOWEST=tests` runs all.
LOWEST ?= $(addprefix tests/,cli geometry media output test_engine.py test_loading.py train/test_run.py serve/test_chat.py \
	checkpoints/test_official.py checkpoints/test_without_grounder.py evals/metrics data/test_samples.py features)

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

# Tests start hundreds of processes; where nothing may be written, each of them compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint type parity slow lowest fuzz bench docs fmt check

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(INSTALLED)  ## make .venv and install Segue into it

demo: $(INSTALLED)  ## set up and run the main job on a scene made on the spot
	$(BIN)/segue demo

test: $(INSTALLED_DEV)  ## set up and run the fast test suite
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal

lint: $(INSTALLED_DEV)  ## style, spelling and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(INSTALLED_DEV)  ## static types
	$(BIN)/mypy

check: lint type docs test  ## what CI runs

parity: $(INSTALLED)  ## replay recordings of the original code
	@test -n "$(RECORDINGS)" || { echo "no recordings found; give folders with RECORDINGS=\"...\"" >&2; exit 2; }
	@failed=0; for recording in $(RECORDINGS); do $(BIN)/segue parity "$$recording" || failed=1; done; exit $$failed

slow: $(INSTALLED_DEV)  ## tests that need real weights, a GPU or minutes
	$(BIN)/python -m pytest -m slow

lowest:  ## a short set of tests on the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[train,dev]'
	.venv-lowest/bin/python -m pytest --numprocesses logical $(LOWEST)

fuzz: $(INSTALLED_DEV)  ## mutated files through the command line for ten minutes, or SECONDS=3600
	$(BIN)/python tests/fuzz/fuzz.py $(or $(SECONDS),600)

bench: $(INSTALLED)  ## what things cost, as ratios from one run
	$(BIN)/segue bench

docs: $(INSTALLED_DEV)  ## build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

fmt: $(INSTALLED_DEV)  ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# PyTorch goes first, alone: with the pinned version in place nothing later brings another build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Segue needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[train]'
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) --editable '.[dev]'
	touch $@
