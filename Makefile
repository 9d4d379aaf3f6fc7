# Every target makes .venv in this checkout, with an editable install, when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
CALLS ?= 10000
PIP := $(BIN)/pip --disable-pip-version-check
RECIPE := setup.cfg pyproject.toml constraints.txt

.PHONY: help demo bench test test-fast test-torch-only soak lint format check coverage docs build clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/	/' | expand -t 18

demo: .venv/.demo  ## train on handwritten recipes, print the table, draw alignment.png
	$(BIN)/python -m examples.handwritten_howto

bench: .venv/.bench  ## every benchmark at quick sizes, and the figures (BENCH=--full: as committed)
	$(BIN)/python -m benchmarks $(BENCH)
	$(BIN)/python -m benchmarks plot

test: .venv/.dev  ## every test
	$(BIN)/python -m pytest

test-fast: .venv/.dev  ## every test but the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-torch-only: .venv-torch-only/.done  ## the tests with torch alone, no optional package
	.venv-torch-only/bin/python -m pytest -m "not slow"

soak: .venv/.dev  ## 20,000 random calls of the losses (CALLS=10000 of each of two kinds)
	NORTON_SOAK=$(CALLS) $(BIN)/python -m pytest tests/test_soak.py

# The types of benchmarks/ need what its rivals bring, which no test does.
lint: .venv/.dev .venv/.bench  ## format, lint and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/.dev  ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test  ## what must be green before a change lands

coverage: .venv/.dev  ## every test, and the lines that none of them reaches
	$(BIN)/python -m pytest --cov --cov-report=term-missing

docs: .venv/.docs  ## the documentation in site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

build: .venv/.dev  ## sdist and wheel in dist/
	$(BIN)/python -m build

clean:  ## remove what the targets made
	rm -rf .venv .venv-torch-only build dist site *.egg-info .pytest_cache .ruff_cache .coverage alignment.png

.venv/.demo: $(RECIPE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable '.[examples]'
	touch $@

.venv/.dev: $(RECIPE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt \
		--editable '.[dev,docs,pot,geomloss,keops,triton,plot,examples,integrations,language]'
	touch $@ .venv/.demo .venv/.docs

.venv/.docs: $(RECIPE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv/.bench: $(RECIPE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

.venv-torch-only/.done: $(RECIPE)
	$(PYTHON) -m venv --clear .venv-torch-only
	.venv-torch-only/bin/pip --disable-pip-version-check install --quiet \
		--constraint constraints.txt --editable . pytest hypothesis
	touch $@
