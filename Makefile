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
# Scenes of DL3DV that make data fetches: all, a number, or their names
SCENES ?= all
# More arguments for the command that the target runs: make test ARGS='-k metrics'
ARGS ?=

PY := $(VENV)/bin/python
SETUP_FILES := pyproject.toml requirements/setup.py $(wildcard requirements/locks/*.txt)
LEFT_OUT := not gpu and not cluster and not container

TABLES := table1 table2 table3 table4 table5 table6 table7 figure8 scaling speed

# Sets the shell variable "profile"
CHOOSE_PROFILE = profile="$(PROFILE)"; \
	if [ "$$profile" = auto ]; then \
	  profile=$$($(PY) -c 'import torch; print("paper" if torch.cuda.is_available() else "tiny")'); \
	  echo "PROFILE=auto: $$profile"; \
	fi

.PHONY: always help setup doctor lock test test-gpu test-cluster test-container slurm-up slurm-down lint format list report
.PHONY: clean docker docker-run sbom
.PHONY: weights data data-dl3dv data-tnt
.PHONY: reproduce $(TABLES:%=reproduce-%)

help: ## list the targets
	@echo "usage: make TARGET [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "variables: PROFILE=auto|tiny|paper  CLUSTER=local|slurm  TORCH=auto|cpu|cuda  PYTHON=...  VENV=...  WORKERS=2  ARGS=..."

setup: $(VENV)/.stamp-dev ## make the virtual environment, with what the tests need

# The stamps live in the environment, so that removing it is all it takes to start afresh. Who names a build of torch
# has it looked at each time: another one may be there.
$(VENV)/.stamp-run: $(SETUP_FILES) $(if $(filter-out auto,$(TORCH)),always)
	@python=""; for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	    >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: none of '$(PYTHON)' is a Python 3.11 or 3.12 that can make a virtual environment;" \
	    "install one (Debian and Ubuntu: also python3-venv), or name it: make setup PYTHON=/path/to/python" >&2; \
	  exit 2; \
	fi; \
	"$$python" requirements/setup.py --venv "$(VENV)" --torch "$(TORCH)"
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@$(PY) requirements/setup.py --venv "$(VENV)" --torch "$(TORCH)" --dev
	@touch $@

# Also tells something where there is no environment, or a broken one, so it sets up nothing.
doctor: ## say what is installed, what is missing for which feature, and whether the main job can run
	@for python in $(PY) $(PYTHON); do if "$$python" -c "" >/dev/null 2>&1; then exec "$$python" -m tttlrm.doctor; fi; done; \
	echo "error: none of '$(PY) $(PYTHON)' is a Python that runs" >&2; exit 2

lock: $(VENV)/.stamp-run ## renew the exact versions in requirements/locks (newest ones: ARGS=--upgrade)
	@$(PY) -m pip install --quiet --no-deps --require-hashes -r requirements/locks/uv.txt
	@$(PY) requirements/lock.py $(ARGS)

# To where the paper profile expects it. What is there is not fetched again, and what was interrupted goes on.
weights: $(VENV)/.stamp-run ## fetch the authors' weights to weights/ (3 GB; part of it: ARGS="full")
	@$(PY) -m tttlrm download weights -o weights $(ARGS)

data: data-tnt data-dl3dv ## fetch both datasets of table 2 to data/

data-dl3dv: $(VENV)/.stamp-run ## fetch the DL3DV benchmark, and convert it (50 GB, after `hf auth login`; part of it: SCENES=10)
	@$(PY) -m tttlrm download dl3dv --scenes $(SCENES) --convert -o data/dl3dv $(ARGS)

data-tnt: $(VENV)/.stamp-run ## fetch Tanks and Temples' train and truck, and convert them (0.7 GB)
	@$(PY) -m tttlrm download tanks-and-temples -o data/tnt $(ARGS)

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
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(CLUSTER_WORKERS) -m cluster tests/integration/cluster $(ARGS)

# What the container engine and the tests of the image need, beside the project's own environment.
IMAGE_TOOLS := build/image-tools
$(IMAGE_TOOLS)/.stamp: docker/tools.txt | $(VENV)/.stamp-run
	@$(PY) -m venv $(IMAGE_TOOLS)
	@$(IMAGE_TOOLS)/bin/pip install --quiet --disable-pip-version-check -r docker/tools.txt
	@touch $@

# The folder whose results/, data/ and weights/ the container sees
FOLDER ?= .

docker: ## build the image: VARIANT=cpu|cuda (default: by the GPU), ENGINE=docker|podman (default: what is there)
	@docker/image build $(ARGS)

docker-run: ## run the suite in the image, with the GPU and results/: make docker-run ARGS="table=table1"
	@image=$$(realpath docker/image); cd "$(FOLDER)" && exec "$$image" run $(ARGS)

sbom: $(IMAGE_TOOLS)/.stamp ## list what is in the image: build/sbom-VARIANT.cdx.json (CycloneDX)
	@PYTHON=$(IMAGE_TOOLS)/bin/python docker/image sbom $(ARGS)

test-container: $(VENV)/.stamp-dev $(IMAGE_TOOLS)/.stamp ## build the image and test it (needs root; installs its Debian packages)
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "error: make test-container needs root and apt: it installs Debian packages, builds an image and starts a SLURM" >&2; \
	  exit 2; \
	fi
	@command -v slurmctld >/dev/null || slurm/testcluster install
	@docker/test_packages.sh
	@if ! slurm/testcluster status; then slurm/testcluster start; trap 'slurm/testcluster stop' EXIT; fi; \
	eval "$$(slurm/testcluster env)"; \
	OMP_NUM_THREADS=1 PATH="$$PWD/$(IMAGE_TOOLS)/bin:$$PATH" $(PY) -m pytest -m container tests/integration/container $(ARGS)

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
reproduce-speed: ## the same of the suite's own table of time and memory: views, schedule, attention kernel

$(TABLES:%=reproduce-%): reproduce-%: $(VENV)/.stamp-run
	@$(CHOOSE_PROFILE); $(PY) -m bench table=$* profile="$$profile" cluster="$(CLUSTER)" $(ARGS)

# Every table is tried, whatever became of the one before; the worst exit status is the target's.
reproduce: $(VENV)/.stamp-run ## all of these
	@$(CHOOSE_PROFILE); worst=0; for table in $(TABLES); do \
	  status=0; $(PY) -m bench table=$$table profile="$$profile" cluster="$(CLUSTER)" $(ARGS) || status=$$?; \
	  if [ $$status -ge 128 ]; then exit $$status; fi; \
	  if [ $$status -gt $$worst ]; then worst=$$status; fi; \
	done; exit $$worst

# A scene over 1, 2, 4, ... GPUs, as many as there are
bench-gpu: $(VENV)/.stamp-run ## measure speed and memory on the GPUs of this machine: table speed, in full size
	@ranks=$$($(PY) -c 'import torch; n = torch.cuda.device_count(); \
	  print(",".join(str(2**i) for i in range(n.bit_length())) if n else exit("error: torch sees no CUDA GPU here"))'); \
	$(PY) -m bench table=speed profile=paper cluster="$(CLUSTER)" "cells.sp_size=[$$ranks]" $(ARGS)

list: $(VENV)/.stamp-run ## show tables, cells and their state
	@$(CHOOSE_PROFILE); $(PY) -m bench list profile="$$profile" cluster="$(CLUSTER)" $(ARGS)

report: $(VENV)/.stamp-run ## write the tables again from the records in results/
	@$(PY) -m bench.tables results $(ARGS)

clean: ## remove caches and build products (not .venv, not results/)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis outputs
	find tttlrm bench tests requirements -name __pycache__ -type d -prune -exec rm -rf {} +
