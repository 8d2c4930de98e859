# The two commands that matter: `make demo` and `make test`. Both do all their set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH ?= torch==2.13.0
JOBS ?= 2
# Alone: other tests beside it would slow one side of its ratios.
SPEED := tests/engine/test_speed.py
SOURCES := $(shell find csrc triton_kernels python/qdengine -name '*.py' -o -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh') CMakeLists.txt pyproject.toml

.PHONY: demo test check bench sanitize clean

# Torch first: anything looser could pull its CUDA build.
$(VENV)/torch.stamp:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q "$(TORCH)" numpy
	touch $@

$(VENV)/installed.stamp: $(VENV)/torch.stamp $(SOURCES)
	$(PIP) install -q ".[test]"
	touch $@

demo: $(VENV)/installed.stamp
	$(BIN)/qdengine student install qd-135m
	$(BIN)/python examples/demo.py

test: check
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q --durations=10 -n $(JOBS) --dist worksteal --ignore $(SPEED)
	$(BIN)/python -m pytest -q $(SPEED)

check: $(VENV)/installed.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed.stamp
	$(BIN)/python benchmarks/bench_ops.py --json build/ops.json
	$(BIN)/python benchmarks/bench_attention.py --documents 4 --batch 8 --without flex --json build/attention.json
	$(BIN)/python benchmarks/bench_step.py --json build/steps.json
	$(BIN)/python -m pytest benchmarks --benchmark-json=build/engine.json

sanitize: $(VENV)/installed.stamp
	bash tests/sanitize.sh $(BIN)/python

clean:
	rm -rf $(VENV) build dist
