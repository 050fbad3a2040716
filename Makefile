# Each target makes the virtual environment .venv when there is none, with the versions of
# constraints.txt. Data files are looked for in $VAEFLOW_DATA, when that is set.
PYTHON ?= python3
BIN := .venv/bin
PACKAGE := .venv/.package
INSTALLED := .venv/.installed

.PHONY: quickstart test lint docs notebooks kdd kdd-paper table1 ring adbench oddbench flow-study potentials bench release

# Installs the package alone. One thread: for networks this small a second one only waits for the first.
quickstart: $(PACKAGE)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow quickstart --out results/quickstart

# One thread a process: the two pytest workers already fill two cores, and torch's own threads on top
# of them would only wait for each other. The package itself never sets a number of threads. A file's
# tests stay together: what they share is made once.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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

# Studies: `vaeflow run` trains what is missing, results/STUDY/make.py makes tables and figures.
ring: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow run ring --out results/ring
	$(BIN)/python -m results.ring.make

kdd-paper: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow run kdd-paper --out results/kdd-paper
	$(BIN)/python -m results.kdd-paper.make

# The paper's Table 1 beside ours.
table1: kdd-paper
	cat results/kdd-paper/paper.md

flow-study: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow run flow-study --out results/flow-study
	OMP_NUM_THREADS=1 $(BIN)/python -m results.flow-study.make --fit

# With baselines on the same splits; hours.
kdd: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow run kdd --out results/kdd
	OMP_NUM_THREADS=1 $(BIN)/python -m results.kdd.make --baselines

adbench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/vaeflow run adbench --out results/adbench
	OMP_NUM_THREADS=1 $(BIN)/python -m results.adbench.make --baselines

# Ten seconds a table and more.
oddbench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m results.oddbench.make --tables 100

potentials: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m results.potentials.make --fit

# Speed and memory beside plain torch and stock Pyro; one thread, for networks this small, and scores
# on two. Five to ten minutes.
bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks --items score

# A wheel and a source archive in dist/, each installed into an environment of its own, outside the
# checkout, where a part of the suite runs. CONSTRAINTS=.ci/oldest.txt takes the oldest versions.
CONSTRAINTS ?= constraints.txt
release: $(INSTALLED)
	PYTHON=$(PYTHON) CONSTRAINTS=$(CONSTRAINTS) .ci/release

# Not the folder but a stamp: an installation that was cut short is resumed.
$(PACKAGE): setup.py setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

$(INSTALLED): $(PACKAGE)
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	touch $@
