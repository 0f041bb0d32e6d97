# Everything a developer or a newcomer runs. Needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA_DIR ?= data/cifar10
STAMP := $(VENV)/.installed

.PHONY: setup demo test corpus check bench gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -e '.[torch,dev,integrations]'
	touch $@

# The main job on the embedded data set. Whatever the verdict is (exit codes 0, 1 and 3), reaching
# one is success. On a machine with one core the two ranks share it.
demo: setup
	@if $(BIN)/python -c 'import os; raise SystemExit(len(os.sched_getaffinity(0)) < 2)'; \
	then share=; else share=--share-device; fi; \
	$(BIN)/scaleproof compare digits --devices 2 $$share; code=$$?; \
	case $$code in 0|1|3) exit 0 ;; *) exit $$code ;; esac

test: setup
	$(BIN)/python -m pytest

# Every script of the fault corpus through scaleproof check: about 35 minutes on two cores.
# PART=0/16 takes every 16th, from the first on.
PART ?= 0/1
corpus: setup
	$(BIN)/python -m pytest -m corpus tests/faults --corpus-part $(PART) --durations 10

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_architecture.py

# Measured claims; real CIFAR-10 in DATA_DIR. Results go to bench/results/.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python bench/epoch_time.py --data-dir $(DATA_DIR)
	$(BIN)/python bench/observer_overhead.py --data-dir $(DATA_DIR)

# The GPU tests and benchmarks, on a machine with CUDA.
gpu: setup
	$(BIN)/python bench/gpu.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
