# Every target builds the environment it needs; `make PYTHON=python3.12 VENV=/tmp/venv test` builds another one.
PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt requirements-dev.txt
RUNS ?= runs
WHEELS ?= wheels
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := $(RUNS)/demo
SHORT := tests/ops tests/models tests/training/step_test.py tests/runs/checkpoint_test.py tests/data/pipeline_test.py \
    tests/inference/detector_test.py tests/inference/export_test.py tests/command_lines_test.py

.PHONY: demo test test-short test-slow torture gpu gpu-wheels lint format clean

# The three commands share what they compile.
demo: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/demo
demo: $(READY)
	$(BIN)/python train.py --config configs/person_demo.py --workdir $(DEMO)
	$(BIN)/python eval.py --workdir $(DEMO)
	$(BIN)/python -m jaxdet report --workdir $(DEMO)

# In two processes; PYTEST_FLAGS="-n 0" runs them in one.
test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(PYTEST_FLAGS)

# A few minutes: the tests that break first under another Python or other versions of the libraries.
test-short: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(SHORT) $(PYTEST_FLAGS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# Hours of faults; docs/reliability.md says what they are.
torture: $(READY)
	JAXDET_CASES=10000 $(BIN)/python -m pytest tests/data/fuzz_test.py tests/untrusted_test.py
	$(BIN)/python -m pytest -m slow tests/training/nonfinite_test.py tests/training/kill_test.py
	rm -rf $(RUNS)/torture/kills
	$(BIN)/python faults/kills.py --kills 100 --workdir $(RUNS)/torture/kills
	$(BIN)/python faults/data_scale.py --workdir $(RUNS)/torture/scale

# Checks and benchmarks on a GPU, for a machine without a network. It uses the machine's own Python, and installs missing
# packages from $(WHEELS), which gpu-wheels fills beforehand. docs/performance.md has the results.
gpu:
	$(PYTHON) -m benchmarks.gpu --wheels $(WHEELS) --output $(RUNS)/gpu $(GPU_FLAGS)

gpu-wheels:
	$(PYTHON) -m benchmarks.wheels $(WHEELS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Caches and build products. The environment and $(RUNS) stay: they took time.
clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Made again when a requirement changes. The stamp comes last, so that an interrupted installation starts over.
$(READY): $(REQUIREMENTS)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else "jaxdet needs Python 3.11 to 3.14, this is %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(REQUIREMENTS))
	touch $@
