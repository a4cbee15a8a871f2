# Every target creates what it needs from a bare machine with Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check slow bench-trajectory clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## two clients on drawn phantoms, the whole line; result in demo-out/
	$(BIN)/collafuse-edge demo --out demo-out

test: $(READY)  ## everything that runs without a GPU in minutes
	$(BIN)/python -m pytest

check: $(READY)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(READY)  ## tests of many minutes
	$(BIN)/python -m pytest -m slow

bench-trajectory: $(READY)  ## a head's trajectory: ort-cpu against diffusers and bare ONNX Runtime
	$(BIN)/python benchmarks/peers/trajectory.py

clean:
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache
