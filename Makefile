# make demo | demo-segmentation | demo-semantic | test | test-slow | check | format | bench (BENCH=--quick) |
# conformance (PEERS="--peer NAME=SCRIPT@PYTHON"). Each sets itself up; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
# One thread per process: data workers and ranks are the parallelism.
export OMP_NUM_THREADS ?= 1

# Tests run in two processes; those of a file share what it sets up.
TEST_PROCESSES ?= 2
SHARED := -n $(TEST_PROCESSES) --dist loadfile

.PHONY: demo demo-segmentation demo-semantic test test-slow check format bench conformance setup

demo: .venv/.requirements
	@sh tools/demo.sh

demo-segmentation: .venv/.requirements
	@sh tools/demo.sh configs/synthetic_masks.yaml demo-segmentation

demo-semantic: .venv/.requirements
	@sh tools/demo.sh configs/synthetic_semantic.yaml demo-semantic

test: .venv/.requirements-dev
	$(BIN)/python -m pytest $(SHARED) -m "not slow" tests

test-slow: .venv/.requirements-dev
	$(BIN)/python -m pytest $(SHARED) -m slow tests

check: .venv/.requirements-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --exclude tests/ --exclude runs/ .

format: .venv/.requirements-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.requirements-dev
	$(BIN)/python -m benchmarks.all $(BENCH)

# Ours, and the peers that are installed as docs/conformance.md says or that PEERS names.
conformance: .venv/.requirements-dev
	$(BIN)/python -m conformance $(PEERS)

setup: .venv/.requirements

.venv/.requirements: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it with make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# What tests, checks and CI need besides.
.venv/.requirements-dev: .venv/.requirements tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@
