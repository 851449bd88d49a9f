# Every target builds .venv from constraints.txt first, once per change of pyproject.toml or constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where the tests keep the TensorRT parser for machines without a GPU; filled once, 150 MB from PyPI.
export GPUSQ_TRT_CPU ?= $(CURDIR)/$(VENV)/trt_cpu
# Test data and model zoo beside the project, the zoo's exports (3.4 GB, made once), and the environment that exports.
export GPUSQ_SHARED ?= $(CURDIR)/../shared
export GPUSQ_ZOO ?= $(CURDIR)/.zoo
export GPUSQ_ZOO_VENV ?= $(CURDIR)/.venv-zoo
# Empty is off: the tests start hundreds of interpreters, and each would compile the package, a third of its time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help venv demo test long coverage acceptance bench gpu fuzz lint format docs clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

venv: $(STAMP) ## build .venv from constraints.txt

# The build backend is installed from the pins too, hence --no-build-isolation.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP) ## the straight road on the embedded digits model: plan, apply, check, and a table
	$(BIN)/python -m tools.digits.demo

test: $(STAMP) ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not long'

long: $(STAMP) ## the tests that take seconds each: trainings, processes, whole documents
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'long and not slow'

coverage: $(STAMP) ## the fast and the long tests, their lines counted in every process: what is not run, and an error below 94 %
	mkdir -p out/coverage
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile -m 'not slow'
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

acceptance: $(STAMP) ## the slow tests and the tables of measured numbers, into out/acceptance; wants ../shared
	$(BIN)/python -m pytest -s -m slow

bench: $(STAMP) ## time and memory against the bars, as ratios, in one run; wants ../shared and a quiet machine
	$(BIN)/python -m tools.bench

# No .venv: the torch of the machine is the one that sees its GPU.
gpu: ## every figure and check that wants a GPU, 8.5 minutes a call, resumable, into out/gpu; docs/gpu.md
	$(PYTHON) -m tools.gpu $(if $(wildcard out/wheels),--wheels out/wheels)

fuzz: $(STAMP) ## broken models, options, data, containers and reports by the thousand, and killed runs: hours, into out/fuzz
	$(BIN)/python -m tools.fuzz --models 20000 --passes 3000 --options 5000 --data 5000 --containers 5000 --reports 2000 --kills 200

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict gpusq_onnx

format: $(STAMP) ## rewrite in the house's layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## the site of docs/ into out/site, every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file tools/docs/mkdocs.yml

clean: ## remove what the targets made
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
