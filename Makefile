# The two commands that always work on a bare machine with Python 3.11 and pip: make demo, make test.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test install lint types gpu bench clean

demo: .venv/.run  ## distil the embedded student, print an honest table, end with the path of a page
	$(BIN)/opd demo

test: .venv/.dev  ## all tests
	$(BIN)/python -m pytest

install: .venv/.dev  ## the environment alone

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/pyright

gpu: .venv/.dev  ## tests and benchmarks that need a CUDA device
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

bench: .venv/.bench  ## side by side with TRL; writes docs/benchmarks.md's tables to standard output
	$(BIN)/python benchmarks/all.py

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing (about a minute the first time) ..."
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing (about a minute the first time) ..."
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.run

.venv/.bench: .venv/.dev
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt trl==1.16.0 -e .
	@touch $@

clean:
	rm -rf .venv .venv-bench runs build dist *.egg-info
