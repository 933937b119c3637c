# VENV is the folder of the environment, PYTHON the interpreter that creates it: make test VENV=/elsewhere PYTHON=python3.12
VENV ?= .venv
PYTHON ?= python3
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
RUNS ?= runs
BIN = $(VENV)/bin
# DeepSpeed builds its CPU operators with the environment's ninja.
export PATH := $(abspath $(BIN)):$(PATH)
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install demo check format test test-serving test-faults test-extended test-gpu test-oldest test-pythons package clean

help:
	@echo "make demo          train, uptrain, evaluate and export a tiny model on the CPU"
	@echo "make test          all tests that need neither a GPU nor a server"
	@echo "make check         format, lint, types, layering, fast tests"
	@echo "make test-serving  tests against a real vLLM, in a separate environment"
	@echo "make test-faults   tests of kills, signals, full disks, broken checkpoints and launchers"
	@echo "make test-extended more engines and families on two ranks, and the benchmark commands"
	@echo "make test-gpu      tests that need a GPU: kernels and engines (to measure one: scripts/benchmark.py gpu)"
	@echo "make test-pythons  the fast tests on each supported Python (PYTHONS), each in a temporary environment"
	@echo "make package       wheel and source distribution, in dist/"
	@echo "make test-oldest   the tests with the oldest supported transformers, in a separate environment"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[train,dev]"
	touch $@

demo: install
	$(BIN)/python scripts/demo.py out=$(RUNS)/demo

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not serving and not faults and not extended"

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: install
	$(BIN)/python -m pytest -q -n 2 -m "not serving and not faults and not extended"

test-serving: install
	$(BIN)/python -m pytest -q -m serving

test-faults: install
	$(BIN)/python -m pytest -q -m faults

test-extended: install
	$(BIN)/python -m pytest -q -n 2 -m extended

test-gpu: install
	$(BIN)/python -m pytest -q -m gpu

test-oldest: pyproject.toml
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet -e ".[train,dev]" "transformers==5.18.0"
	$(VENV)-oldest/bin/python -m pytest -q -n 2 -m "not serving and not faults and not extended"

test-pythons:
	for python in $(PYTHONS); do \
		rm -rf $(VENV)-python; \
		$$python -m venv $(VENV)-python && \
		$(VENV)-python/bin/python -m pip install --quiet -e ".[train,dev]" && \
		$(VENV)-python/bin/python -m pytest -q -n 2 -m "not slow and not serving and not faults and not extended" || exit 1; \
	done
	rm -rf $(VENV)-python

package: install
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-python build dist *.egg-info
