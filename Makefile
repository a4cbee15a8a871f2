# Every target creates what it needs from a bare machine with Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# NVIDIA's builder that needs no GPU, locked without what it depends on: that is a meta package and CUDA
TENSORRT_RTX := tensorrt-rtx-cu13-%s==1.7.1.116 ; sys_platform == 'linux' and platform_machine == 'x86_64'
LOCK := $(VENV)/lock/bin/uv pip compile --quiet --universal --no-python-downloads --generate-hashes --no-annotate --custom-compile-command 'make lock'
HEAD := /^\#/ { if (NR < 3) print; next }
# torch, whose build each machine takes from elsewhere, and what the build on PyPI brings for CUDA
IS_CUDA := /^[a-z]/ { cuda = /^(torch|triton|cuda-toolkit|nvidia-[a-z0-9-]+)==/ && !/^nvidia-ml-py==/ }

# A process per core, whichever is free takes the next test; what measures time has the machine to itself
TOGETHER := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The pages of the site, and what they link to
DOCS_PAGES := *.md LICENSE docs examples benchmarks/results benchmarks/peers/README.md runtimes/device-constraints.txt
# What a browser would load by itself from another host
LOADS_ELSEWHERE := <(script|img|iframe|source)[^>]* src=.?(https?:)?//|<link[^>]* href=.?(https?:)?//|(url\(|@import ).?(https?:)?//

.PHONY: demo test test-full coverage check slow lock docs fuzz bench-trajectory clean

$(READY): pyproject.toml constraints.txt constraints.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement constraints.lock
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY)  ## two clients on drawn phantoms, the whole line; result in demo-out/
	$(BIN)/collafuse-edge demo --out demo-out

test: $(READY)  ## every promise, without a GPU, in minutes
	$(TOGETHER) -m 'not slow and not full and not alone' $(COVER)
	$(BIN)/python -m pytest -m 'not slow and not full and alone' $$(grep -rl --include='*.py' 'pytest\.mark\.alone' tests)

test-full: $(READY)  ## the rest of what CI tests: every case of a promise that `make test` holds in a smaller one
	$(TOGETHER) -m 'full and not slow'

coverage: COVER := --cov --cov-report=term:skip-covered
coverage: test  ## make test, a quarter slower, with the share of lines it runs in its own processes; fails under the floor

check: $(READY)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## the pages as a site in build/docs/site (python -m http.server -d build/docs/site); a broken link fails, and what loads from elsewhere
	rm -rf build/docs
	mkdir -p build/docs/pages
	tar -cf - $(DOCS_PAGES) | tar -xf - -C build/docs/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	! grep -rnoE '$(LOADS_ELSEWHERE)' build/docs/site --include='*.html' --include='*.css'

slow: $(READY)  ## tests of many minutes
	$(BIN)/python -m pytest -m slow

fuzz: $(READY)  ## damaged files of every kind through the commands that read them, ten minutes
	$(BIN)/python tests/fuzz

lock:  ## every package with its hashes, for Python 3.10 to 3.13, from pyproject.toml and the constraints
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv==0.13.9
	printf "$(TENSORRT_RTX)\n" libs bindings >$(VENV)/lock/rtx.in
	$(LOCK) --python-version 3.10 --extra dev --constraint constraints.txt pyproject.toml --output-file $(VENV)/lock/all.lock
	$(LOCK) --no-deps $(VENV)/lock/rtx.in --output-file $(VENV)/lock/rtx.lock
	awk '$(HEAD) $(IS_CUDA) !cuda' $(VENV)/lock/all.lock $(VENV)/lock/rtx.lock >constraints.lock
	awk '$(HEAD) $(IS_CUDA) cuda' $(VENV)/lock/all.lock >constraints-cuda.lock
	$(LOCK) --python-version 3.10 --constraint runtimes/device-constraints.txt pyproject.toml \
	  --output-file runtimes/device-constraints.lock

bench-trajectory: $(READY)  ## a head's trajectory: ort-cpu against diffusers and bare ONNX Runtime
	$(BIN)/python benchmarks/peers/trajectory.py

clean:
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache build/docs .coverage
