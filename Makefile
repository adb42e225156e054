# make demo   set up, simulate, train and score the demo; finished stages are reused
# make test   the tests
# make check  lint, format and types
# make benchmark   every method on the same scenes, a small version of configs/benchmark.yaml; needs the demo's model
# PYTHON=python3.12 picks the interpreter of the environment; CONFIG=… RUN=… (its folder) another run.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/demo.yaml
RUN ?= runs/demo

BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
MODEL := $(RUN)/model
SKY := $(RUN)/reconstructions
SCENES := $(foreach geometry,lsst hsc mer,--scene $(RUN)/scenes/$(geometry)/scene.yaml)
LAUNCH := $(BIN)/accelerate launch --quiet --config_file configs/accelerate/single.yaml

.PHONY: demo test check benchmark baselines
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python scripts/simulate.py --config $(CONFIG) --run $(RUN)
	$(LAUNCH) scripts/train.py --config $(CONFIG) --run $(RUN) $(if $(wildcard $(RUN)/checkpoints/step_*),--resume)
	test -f $(SKY)/catalog.fits && test -z "$$(find $(MODEL) $(RUN)/scenes -type f -newer $(SKY)/catalog.fits)" || \
	  $(BIN)/python scripts/reconstruct.py $(SCENES) --checkpoint $(MODEL) --output $(SKY)
	$(BIN)/python scripts/evaluate.py --config $(CONFIG) --run $(RUN)

test: $(TOOLS)
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Methods that take minutes a scene see four scenes, with two samples each; all others see forty-eight, with fifteen.
benchmark: baselines
	test -d $(MODEL) || $(MAKE) demo
	$(BIN)/python scripts/evaluate.py --config configs/benchmark.yaml --run $(RUN) \
	  --benchmark.scenes 2 --benchmark.slow_scenes 4 --benchmark.slow_samples 2

baselines: $(VENV)/.baselines

$(VENV)/.baselines: $(TOOLS)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,baselines]'
	touch $@

# The build back end comes from the same pins, so the editable install needs no network of its own.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e .
	touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
