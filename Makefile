# Every target sets itself up: Python 3.11 or 3.12, make and git are all that must be there.
# `make setup PYTHON=/path/to/python3.12` chooses the interpreter; `make test ARGS="-k packing"` hands arguments on, and
# `make test SPREAD=` runs all tests in one process.

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
PEER_PYTHON ?= $(BIN)/python
ARGS ?=
SPREAD ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup check test test-slow demo demo-full bench lock clean

help:
	@echo "make setup      install into .venv (done once, and again when pyproject.toml or the lock changes)"
	@echo "make check      ruff, pyright, import-linter"
	@echo "make test       all tests but the slow ones"
	@echo "make test-slow  the slow ones"
	@echo "make demo       FIAT on a small generated task, start to end: a few minutes"
	@echo "make demo-full  every part of it removed in turn, three sizes, three seeds; goes on where it was stopped"
	@echo "make bench      our train step and peft's, in turn"
	@echo "make lock       resolve the newest versions that pyproject.toml allows (needs uv)"
	@echo "make clean      remove what make made; runs and reasoning stay"

setup: $(STAMP)

# pip is asked for before the venv is kept: an interrupted or failed attempt is made anew, not built upon.
$(STAMP): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || { \
	  echo "Python 3.11 or 3.12 is needed$(if $(PYTHON),; $(PYTHON) is neither). Say where one is: make setup PYTHON=PATH" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv: a few minutes, once."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu and not tpu" $(SPREAD) $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu and not tpu" $(ARGS)

demo: $(STAMP)
	$(BIN)/fiat demo $(ARGS)

demo-full: $(STAMP)
	$(BIN)/fiat demo --full --workdir runs/demo-full $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/train_step.py --peer-python $(PEER_PYTHON) $(ARGS)

# torch and what it brings stay out, so that pip may take its build for CPUs where there is one.
lock:
	@{ echo "# Exact versions for Python 3.11 and 3.12, for pip install -c. Made by make lock; torch stays out."; \
	   uv pip compile --quiet --universal --upgrade --extra dev --strip-extras --no-annotate --no-header pyproject.toml \
	     | grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)=='; } > requirements.lock.new
	@grep -q '^jax==' requirements.lock.new && mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find fiat_jax tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
