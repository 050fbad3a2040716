# Each target makes the virtual environment .venv when there is none, with the versions of
# constraints.txt. Data files are looked for in $VAEFLOW_DATA, when that is set.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test lint docs notebooks kdd-paper ring potentials table1 bench flow-study

# One thread: for networks this small a second one only waits for the first.
quickstart: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow run quickstart --out results/quickstart

# One thread a process: the two pytest workers already fill two cores, and torch's own threads on top
# of them would only wait for each other. The package itself never sets a number of threads.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Any warning is an error. The pages are in docs/_build/html.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# Executes them anew, on their full budget: some minutes each.
notebooks: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py

kdd-paper: $(INSTALLED)
	$(BIN)/vaeflow run kdd-paper --out results/kdd-paper

ring: $(INSTALLED)
	$(BIN)/vaeflow run ring --out results/ring

potentials: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pyro_vaeflow.studies.potential_study --out results/potentials

# Speed and memory beside plain torch and stock Pyro; one thread, for networks this small, and scores
# on two. Five to ten minutes.
bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks --items score

# Goes on with what is missing; the page and its figures say how much of the design has run.
flow-study: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow run flow-study --out results/flow-study
	$(BIN)/python -m pyro_vaeflow.studies.flow_study results/flow-study

# Runs that are finished are not run again.
table1: kdd-paper
	$(BIN)/vaeflow table results/kdd-paper

# Not the folder but a stamp: an installation that was cut short is taken up again.
$(INSTALLED): setup.py setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	touch $@
