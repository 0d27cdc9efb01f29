# `make help` lists the targets. Each one sets up what it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
# Tried in this order; give one to insist on it: make setup PYTHON=/opt/python3.12/bin/python3
PYTHON ?= python3.11 python3.12 python3 python
# auto, cpu or cuda: which build of torch the environment gets (requirements/setup.py says what auto does)
TORCH ?= auto
# auto, tiny or paper: auto is paper where torch sees a CUDA GPU and tiny elsewhere
PROFILE ?= auto
CLUSTER ?= local
# Processes that run tests at once
WORKERS ?= 2
# Tests that use the test cluster at once: most of their time is spent waiting for it
CLUSTER_WORKERS ?= 3
# More arguments for the command that the target runs: make test ARGS='-k metrics'
ARGS ?=

PY := $(VENV)/bin/python
SETUP_FILES := pyproject.toml requirements/constraints.txt requirements/setup.py
LEFT_OUT := not gpu and not cluster and not container

TABLES := table1 table2 table3 table4 table5 table6 table7 figure8 scaling

# Sets the shell variable "profile"
CHOOSE_PROFILE = profile="$(PROFILE)"; \
	if [ "$$profile" = auto ]; then \
	  profile=$$($(PY) -c 'import torch; print("paper" if torch.cuda.is_available() else "tiny")'); \
	  echo "PROFILE=auto: $$profile"; \
	fi

.PHONY: help setup test test-gpu test-cluster slurm-up slurm-down lint format list report clean
.PHONY: reproduce $(TABLES:%=reproduce-%)

help: ## list the targets
	@echo "usage: make TARGET [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "variables: PROFILE=auto|tiny|paper  CLUSTER=local|slurm  TORCH=auto|cpu|cuda  PYTHON=...  VENV=...  WORKERS=2  ARGS=..."

setup: $(VENV)/.stamp-dev ## make the virtual environment, with what the tests need

# The stamps live in the environment, so that removing it is all it takes to start afresh.
$(VENV)/.stamp-run: $(SETUP_FILES)
	@python=""; for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	    >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: none of '$(PYTHON)' is a Python 3.11 or 3.12 that can make a virtual environment;" \
	    "install one (Debian and Ubuntu: also python3-venv), or name it: make setup PYTHON=/path/to/python" >&2; \
	  exit 2; \
	fi; \
	"$$python" requirements/setup.py --venv "$(VENV)" --torch "$(TORCH)" --extra plots
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@$(PY) requirements/setup.py --venv "$(VENV)" --torch "$(TORCH)" --extra plots --extra dev
	@touch $@

test: $(VENV)/.stamp-dev ## run the tests that any machine can run, without root
	@echo "Left out: tests that need a CUDA GPU (make test-gpu), a SLURM cluster or a container engine."
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) -m "$(LEFT_OUT)" $(ARGS)

test-gpu: $(VENV)/.stamp-dev ## run the tests that need a CUDA GPU
	@$(PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "error: torch sees no CUDA GPU here")'
	$(PY) -m pytest -m gpu $(ARGS)

slurm-up: ## start a small real SLURM on this machine (needs root; installs its Debian packages)
	@command -v slurmctld >/dev/null || slurm/testcluster install
	@slurm/testcluster start

slurm-down: ## stop it
	@slurm/testcluster stop

# The cluster is stopped whatever the tests say, unless it was there before.
test-cluster: $(VENV)/.stamp-dev ## run the tests on a real SLURM (needs root; installs its Debian packages)
	@if [ "$$(id -u)" != 0 ]; then echo "error: make test-cluster starts a SLURM, which needs root" >&2; exit 2; fi
	@command -v slurmctld >/dev/null || slurm/testcluster install
	@if ! slurm/testcluster status; then slurm/testcluster start; trap 'slurm/testcluster stop' EXIT; fi; \
	eval "$$(slurm/testcluster env)"; \
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(CLUSTER_WORKERS) --dist loadgroup -m cluster tests/integration/cluster $(ARGS)

lint: $(VENV)/.stamp-dev ## check style (ruff) and types (mypy)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy tttlrm bench

format: $(VENV)/.stamp-dev ## rewrite the code in the project's style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# One target for each table; pattern rules would not show in `make help`.
reproduce-table1: ## run what is missing of the paper's table 1 (attention against tttLRM, objects) and write the table
reproduce-table2: ## the same of table 2 (scenes, full and autoregressive)
reproduce-table3: ## the same of table 3 (pretraining)
reproduce-table4: ## the same of table 4 (autoregressive strategies)
reproduce-table5: ## the same of table 5 (ablation of the training)
reproduce-table6: ## the same of table 6 (selective update)
reproduce-table7: ## the same of table 7 (post-optimisation)
reproduce-figure8: ## the same of figure 8 (attention layers against fast-weight layers)
reproduce-scaling: ## the same of the suite's own table: views, ranks that share a scene, schedule

$(TABLES:%=reproduce-%): reproduce-%: $(VENV)/.stamp-run
	@$(CHOOSE_PROFILE); $(PY) -m bench table=$* profile="$$profile" cluster="$(CLUSTER)" $(ARGS)

# Every table is tried, whatever became of the one before; the worst exit status is the target's.
reproduce: $(VENV)/.stamp-run ## all of these
	@$(CHOOSE_PROFILE); worst=0; for table in $(TABLES); do \
	  status=0; $(PY) -m bench table=$$table profile="$$profile" cluster="$(CLUSTER)" $(ARGS) || status=$$?; \
	  if [ $$status -ge 128 ]; then exit $$status; fi; \
	  if [ $$status -gt $$worst ]; then worst=$$status; fi; \
	done; exit $$worst

list: $(VENV)/.stamp-run ## show tables, cells and their state
	@$(CHOOSE_PROFILE); $(PY) -m bench list profile="$$profile" cluster="$(CLUSTER)" $(ARGS)

report: $(VENV)/.stamp-run ## write the tables again from the records in results/
	@$(PY) -m bench.tables results $(ARGS)

clean: ## remove caches and build products (not .venv, not results/)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis outputs
	find tttlrm bench tests requirements -name __pycache__ -type d -prune -exec rm -rf {} +
