# Everything here sets up what it needs: a machine with Python 3.11-3.13, git and make is enough.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The first Python that runs and is new enough; a shim may be found and still fail.
SUITABLE = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	"$$python" -c '$(SUITABLE)' >/dev/null 2>&1 && { echo "$$python"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := outputs/demo
DEMO_OPTIONS ?=
DEMOS := $(DEMO)/gate $(DEMO)/random $(DEMO)/whole_pool
RUNS ?= $(wildcard $(DEMOS))
TESTS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=

.PHONY: help setup demo test test-quick test-all lint generate bench soak report clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY)  ## the environment in .venv, at the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(SUITABLE)' >/dev/null 2>&1; then \
		echo "winnow needs Python 3.11, 3.12 or 3.13, and found none that runs: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' >/dev/null 2>&1 && ! [ -x $(BIN)/python ]; then \
		echo "$(PYTHON) has no ensurepip, so it cannot make an environment." >&2; \
		echo "On Debian and Ubuntu: apt install python3-venv. Or name another Python: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@[ -x $(BIN)/python ] && $(BIN)/python -c '$(SUITABLE)' >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)  ## a gate and filter_weight, random and the whole pool at equal compute, side by side (three minutes)
	@rm -rf $(DEMOS)
	$(BIN)/python train.py experiment=demo gate=ngrams scoring.period=8 hydra.run.dir=$(DEMO)/gate $(DEMO_OPTIONS)
	$(BIN)/python train.py experiment=demo baseline=random hydra.run.dir=$(DEMO)/random $(DEMO_OPTIONS)
	$(BIN)/python train.py experiment=demo baseline=full hydra.run.dir=$(DEMO)/whole_pool $(DEMO_OPTIONS)
	$(BIN)/python -m winnow.report $(DEMOS) --out $(DEMO)/compare.png --gate-out $(DEMO)/gate.png

# One thread each: two tests side by side are faster than one with two threads at these sizes.
test: $(READY)  ## the whole test suite; TESTS=tests/engine for a part
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not long" $(TESTS)

test-quick: $(READY)  ## engine, choice, selectors, data and docs: no process, no whole run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not long" tests/engine tests/choice tests/selectors tests/data tests/docs

test-all: $(READY)  ## the same with the long ones, and ten times the drawn batch layouts
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-profile=thorough $(TESTS)

lint: $(READY)  ## ruff, its formatter, and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src

generate: $(READY)  ## write docs/METHODS.md, conf/baseline and the sweeps that follow from other files
	$(BIN)/python docs/generate.py

bench: $(READY)  ## speed and memory against plain training; BENCH_ARGS="--quick --json FILE" for the short form
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

soak: $(READY)  ## kill runs at random moments and go on, and one long run; SOAK_ARGS="--kills 2 --terms 1 --steps 0" for less
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

report: $(READY)  ## table and plot of RUNS="outputs/a outputs/b" (default: the demo's)
	@if [ -z "$(RUNS)" ]; then echo 'no runs to report: make demo first, or make report RUNS="outputs/a outputs/b"' >&2; exit 1; fi
	$(BIN)/python -m winnow.report $(RUNS) --out outputs/compare.png

clean:  ## remove the environment and the tools' caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
