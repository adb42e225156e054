# make demo   set up, simulate, train and score the demo; finished stages are reused
# make test   the tests
# make check  lint, format and types
# PYTHON=python3.12 picks the interpreter of the environment, CONFIG=… another run.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/demo.yaml

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python scripts/simulate.py --config $(CONFIG)
	$(BIN)/accelerate launch --quiet scripts/train.py --config $(CONFIG)
	$(BIN)/python scripts/evaluate.py --config $(CONFIG)

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The build back end comes from the same pins, so the editable install needs no network of its own.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
