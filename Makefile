# Every target builds the environment it needs; `make PYTHON=python3.12 VENV=/tmp/venv test` builds another one.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
WHEELS ?= wheels
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := $(RUNS)/demo

.PHONY: demo test test-slow torture gpu gpu-wheels lint format clean

# The three commands share what they compile.
demo: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/demo
demo: $(READY)
	$(BIN)/python train.py --config configs/person_demo.py --workdir $(DEMO)
	$(BIN)/python eval.py --config configs/person_demo.py --workdir $(DEMO)
	$(BIN)/python -m jaxdet report --workdir $(DEMO)

test: lint
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# Hours of faults; docs/reliability.md says what they are.
torture: $(READY)
	JAXDET_CASES=10000 $(BIN)/python -m pytest tests/data/fuzz_test.py tests/untrusted_test.py
	$(BIN)/python -m pytest -m slow tests/training/nonfinite_test.py tests/training/kill_test.py
	rm -rf $(RUNS)/torture/kills
	$(BIN)/python faults/kills.py --kills 100 --workdir $(RUNS)/torture/kills
	$(BIN)/python faults/data_scale.py --workdir $(RUNS)/torture/scale

# What a GPU is asked, on a machine without a network: with its own Python, and wheels from $(WHEELS) for what that lacks.
# docs/performance.md says what comes of it; gpu-wheels fills the folder beforehand, where there is a network.
gpu:
	$(PYTHON) -m benchmarks.gpu --wheels $(WHEELS) --output $(RUNS)/gpu $(GPU_FLAGS)

gpu-wheels:
	$(PYTHON) -m benchmarks.wheels $(WHEELS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Caches and build products. The environment and $(RUNS) stay: they took time.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Made again when a requirement changes. The stamp comes last, so that an interrupted installation starts over.
$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "jaxdet needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@
