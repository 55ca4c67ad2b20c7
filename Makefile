# `make run` then `make test` is all a fresh clone needs; `make help` lists the rest.
PYTHON ?= python3
RUNS ?= runs
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run test test-launchers test-slurm lint tables plots ledger localisation report status results gallery bench bench-gpu docs-attacks docs-defenses dashboard clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install into it (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BackPrune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]' -c constraints.txt
	@touch $@

run: $(STAMP)  ## the demo: 3 attacks x 4 defences x 3 seeds on the embedded digits, then its table
	$(BIN)/python bench/run.py -m attack=badnets,blend,wanet defense=none,anp,rnp,clp seed=2,3,4 runs=$(RUNS)
	@$(MAKE) --no-print-directory tables

tables: $(STAMP)  ## tables of all finished cells, here and as Markdown, CSV and LaTeX in runs/tables
	@$(BIN)/python -m analysis.tables --runs $(RUNS)

plots: $(STAMP)  ## curves, trade-offs, heat map, layers, cost and ranks of all finished cells in runs/plots
	@$(BIN)/python -m analysis.plots --runs $(RUNS)

ledger: $(STAMP)  ## published numbers beside ours, here and in runs/tables
	@$(BIN)/python -m analysis.ledger --runs $(RUNS)

status: $(STAMP)  ## where the last sweep stands: done, suspect, running, failed, stale, missing, and the command that fills the gap
	@$(BIN)/python -m analysis.status --runs $(RUNS)

gallery: $(STAMP)  ## what each stored attack does to images, in runs/gallery
	@$(BIN)/python -m analysis.gallery --runs $(RUNS)

bench: $(STAMP)  ## speed against the official procedures, ten minutes on two quiet cores; ROWS=clp,ep for some of it
	@$(BIN)/python -m benchmarks $(if $(ROWS),--only $(ROWS))

bench-gpu: $(STAMP)  ## the GPU half of docs/performance.md, under nine minutes; WORDS="dataset=cifar10_jpeg dataset.root=DIR"
	@$(BIN)/python -m benchmarks.gpu $(WORDS)

localisation: $(STAMP)  ## do pruners find the backdoor's channels? their scores against TAC, in runs/localisation
	@$(BIN)/python -m analysis.localisation --runs $(RUNS)

report: $(STAMP)  ## one HTML page of all finished cells, with everything in it, in runs/report
	@$(BIN)/python -m analysis.report --runs $(RUNS)

dashboard: $(STAMP)  ## a W&B workspace and report for runs of tracker=wandb, saved when logged in, else in runs/dashboards
	@$(BIN)/python -m analysis.dashboard --runs $(RUNS)

results: $(STAMP)  ## RESULTS.md from the records in results/
	@$(BIN)/python -m analysis.results

docs-attacks: $(STAMP)  ## train every attack on the embedded digits (ten minutes on one core) and write docs/attacks.md
	$(BIN)/python bench/run.py -m 'attack=glob(*,exclude=[imported,unknown])' defense=none seed=2,3,4 threads=1 runs=$(RUNS)/docs-attacks
	@$(BIN)/python -m analysis.attacks --runs $(RUNS)/docs-attacks --into docs/attacks.md

docs-defenses: $(STAMP)  ## every defence against six models on the embedded digits (hours on two cores), into docs/defenses.md
	$(BIN)/python bench/run.py -m attack=badnets,blend,wanet,sig,inputaware,none 'defense=glob(*)' seed=2,3,4 threads=1 runs=$(RUNS)/docs-defenses
	@$(BIN)/python -m analysis.tables --runs $(RUNS)/docs-defenses --into docs/defenses.md

test: $(STAMP)  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder --durations=15 --durations-min=10

test-launchers: $(STAMP)  ## the 3 x 3 demo by each parallel launcher that is installed, and whether all agree (ten minutes)
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/launchers.sh $(RUNS)/test-launchers

test-slurm: $(STAMP)  ## the demo on a real Slurm that is started here; skipped with the reason where that cannot be (ten minutes)
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/slurm/run.sh

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove caches; results in runs/ and .venv stay
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find bench analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +
