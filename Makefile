# make experiment   train DeepAtlas and its baselines, and print the table (DATASET=hippocampus, ARGS="labelled=5 seed=1")
# make test         every test, notebooks included, a process a core (WORKERS=0: in one, as a debugger wants it)
# make tutorials    the lessons, executed, as pages and slides that work from disk: site/index.html
# make lab          JupyterLab on the notebooks
# make results      every run of the evidence, hours on a laptop (ARGS="dataset=phantom-knee" for some of them)
# make rivals       SyN, B-splines, label fusion and a DynUNet on the evidence's test scans: hours (ARGS="--rival ants_cc")
# make weights      the trained networks that come with the project (DATASET, ARGS as above)
# make trust        faults planted, runs disturbed, files damaged, by the hundred and thousand; a class of thirty; the kit
#                   installed by each Python of this machine (wants the network): hours (ARGS="--seed 7")
# make bench        how long things take on this machine, beside MONAI, VoxelMorph and PyTorch: half an hour
# Each sets up what is missing in .venv. On Windows, or without make: see README.md.

PYTHON ?= python3
DATASET ?= phantom-brain
WORKERS ?= auto
BIN := .venv/bin
# A file of tests stays in one process, since its tests share what it set up; the order is that of tests/conftest.py.
SIDE_BY_SIDE = $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# All tests together, not some that ARGS names, run so many percent of the package's lines.
COVERED = --cov --cov-report=term:skip-covered --cov-fail-under=95

ifdef DEEPATLAS_DATA
export DEEPATLAS_DATA := $(abspath $(DEEPATLAS_DATA))
endif

.PHONY: experiment test lab lint bench results rivals trust tutorials weights

experiment: .venv/run.stamp
	$(BIN)/deepatlas run dataset=$(DATASET) $(ARGS)

results: .venv/run.stamp
	$(BIN)/deepatlas sweep tutorials_data/results/evidence.toml $(ARGS) --results tutorials_data/results
	$(BIN)/deepatlas sweep tutorials_data/results/ablations.toml $(ARGS) --results tutorials_data/results
	$(BIN)/deepatlas sweep tutorials_data/results/short.toml $(ARGS) --results tutorials_data/results/short
	OMP_NUM_THREADS=2 $(BIN)/deepatlas sweep tutorials_data/results/again.toml $(ARGS) --workers 1 \
		--root runs/again --results tutorials_data/results/again
	$(BIN)/deepatlas gains

rivals: .venv/test.stamp
	$(BIN)/python -m pip install --quiet --editable ".[peers]"
	for dataset in phantom-brain phantom-knee oasis35; do \
		$(BIN)/python -m benchmarks.peers --dataset $$dataset --dims 2 --seed 10 11 12 13 14 $(ARGS) || exit; \
	done
	$(BIN)/deepatlas gains

tutorials: .venv/run.stamp
	$(BIN)/deepatlas site $(ARGS)

weights: .venv/run.stamp
	$(BIN)/deepatlas weights dataset=$(DATASET) $(ARGS)

test: lint
	$(SIDE_BY_SIDE) $(or $(ARGS),$(COVERED))

trust: .venv/test.stamp
	$(BIN)/python tests/trust/plant.py $(ARGS)
	$(BIN)/python tests/trust/interrupt.py $(ARGS)
	$(BIN)/python tests/trust/load.py kernels
	$(BIN)/python tests/trust/load.py trainings
	$(BIN)/python tests/trust/load.py cohort
	$(BIN)/python tests/trust/installs.py
	DEEPATLAS_FUZZ=5 $(SIDE_BY_SIDE) tests/fuzz

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check deepatlas tests benchmarks
	$(BIN)/python -m mypy
	$(BIN)/codespell *.md notebooks tutorials_data deepatlas tests benchmarks

lab: .venv/run.stamp
	$(BIN)/deepatlas lab $(ARGS)

bench: .venv/test.stamp
	$(BIN)/python -m pip install --quiet --editable ".[peers]"
	$(BIN)/python benchmarks/operations.py
	$(BIN)/python benchmarks/operations.py --growth
	$(BIN)/python benchmarks/steps.py step training
	$(BIN)/python benchmarks/steps.py step memory --mixed
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/viewing.py

.venv/pip.stamp:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11, 4), 'Python 3.11.4 or newer is needed, this is ' + sys.version.split()[0] + ': name another one, as in make PYTHON=python3.12 ...'"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/run.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/test.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/python -m pip install --editable ".[test,dev]"
	$(BIN)/python -m pip install --no-deps "digital-diffeomorphism>=1.1"  # it asks for a nibabel that is too old
# antspyx asks for numpy < 2.4 and scipy < 1.16, and does what the tests want with newer ones. So it comes without its
# dependencies; statsmodels, scikit-learn and webcolors are those that nothing else brings. Where there is none for this
# Python, the tests that read by it are skipped.
	$(BIN)/python -m pip install statsmodels scikit-learn webcolors
	$(BIN)/python -m pip install --no-deps --only-binary antspyx "antspyx>=0.6" || echo "no antspyx here: its tests are skipped"
	touch $@ .venv/run.stamp
