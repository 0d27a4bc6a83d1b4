# `make digits` and `make check` install into a virtual environment of their own and run; nothing else is needed.
PYTHON ?= python3
BITSWITCH_VENV ?= .venv
BIN := $(BITSWITCH_VENV)/bin

.PHONY: digits check install install-dev lint types doctests tests

digits: install
	$(BIN)/bitswitch train digits

check: install-dev lint types doctests tests

$(BIN)/python:
	$(PYTHON) -m venv $(BITSWITCH_VENV)

install: $(BIN)/python
	$(BIN)/python -m pip install --quiet .

install-dev: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/pyright --pythonpath $(BIN)/python

doctests:
	$(BIN)/python -m pytest --doctest-modules src

tests:
	$(BIN)/python -m pytest
