# Every target creates what it needs from a bare machine with Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TENSORRT_RTX := tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116

.PHONY: demo test check slow fuzz bench-trajectory clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# NVIDIA's builder that needs no GPU; its wheels are for Linux on x86 and would pull in a meta package
	test "$$(uname -sm)" != "Linux x86_64" || $(BIN)/python -m pip install --quiet --no-deps $(TENSORRT_RTX)
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

fuzz: $(READY)  ## damaged files of every kind through the commands that read them, ten minutes
	$(BIN)/python tests/fuzz

bench-trajectory: $(READY)  ## a head's trajectory: ort-cpu against diffusers and bare ONNX Runtime
	$(BIN)/python benchmarks/peers/trajectory.py

clean:
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache
