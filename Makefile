# make demo    train a real data set over two ranks from a notebook, and compare with one process
# make test    style, types and all tests
# make check   style and types only
# make demos   execute all demo notebooks and keep their outputs in them
# make bench   nbpar against its peers, one table (names="cell values" picks)
# make clean   remove what the others made
#
# Everything is installed into .venv from the package index, at the versions in constraints.txt. PYTHON picks the interpreter.

PYTHON ?= python3
python := .venv/bin/python
install := $(python) -m pip install -qq --disable-pip-version-check --root-user-action=ignore -c constraints.txt

.PHONY: demo test check demos bench clean
.DEFAULT_GOAL := test

demo: .venv/demo
	@$(python) -m nbpar demo

test: check
	@$(python) -m pytest

check: .venv/test
	@$(python) -m ruff check .
	@$(python) -m ruff format --check --quiet .
	@$(python) -m mypy --no-error-summary

demos: .venv/test
	@$(python) -m tests.demos.kept $(names)

bench: .venv/bench
	@$(python) -m benchmarks $(names)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_notebooks/executed

# A stamp for each set of extras: made again when what is to be installed has changed.
.venv/demo .venv/test .venv/bench: .venv/%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing nbpar[$*] into .venv, some minutes the first time …"
	@$(install) -e '.[$*]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -m venv .venv
