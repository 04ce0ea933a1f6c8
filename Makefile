# make demo    set up, train three methods on synthetic scans, write a report        (about 6 minutes on 2 cores, once installed)
# make test    set up, lint, check types, run the tests                              (about 9 minutes on 2 cores, once installed)
# make check   lint, types and the fast tests                                        (about 8 minutes)
# make docs    set up, build the site of the documentation in build/site; a broken link is an error

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# The release that the results were made with. Elsewhere: make demo TORCH=torch
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo test check lint docs clean

$(VENV)/.package: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[fast,dicom,mesh]"
	touch $@

$(VENV)/.development: $(VENV)/.package
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[fast,dicom,dicom-node,mesh,onnx,serve,dev]"
	touch $@

demo: $(VENV)/.package
	$(BIN)/labelwise demo

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes with one thread each are faster than one with two: most tests are small.
test: lint
	PYTHONUTF8=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" --cov --cov-report=term

check: lint
	PYTHONUTF8=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" -x -q

$(VENV)/.documentation: $(VENV)/.package
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[docs]"
	touch $@

docs: $(VENV)/.documentation
	NO_MKDOCS_2_WARNING=1 PYTHONUTF8=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build runs .coverage* .pytest_cache .mypy_cache .ruff_cache
