# Every target installs into a virtual environment of its own and runs; nothing else is needed. `make digits` and `make check`
# are the usual ones; `make sanitize` and `make check-kernels` are for work on the kernels.
PYTHON ?= python3
BITSWITCH_VENV ?= .venv
BIN := $(BITSWITCH_VENV)/bin

SANITIZERS ?= address,undefined
SANITIZED := build/sanitize
KERNEL_TESTS := tests/native tests/runtime tests/quantizers
SLOWER_KERNELS ?= reference scalar avx2

.PHONY: digits check install install-dev lint types doctests tests build-tools check-kernels sanitize

digits: install
	$(BIN)/bitswitch train digits

# The checks begin when the installation is complete, also with `make -j`.
check: install-dev
	$(MAKE) lint types doctests tests

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

# All tests as they run without a compiler, and on older processors.
check-kernels: install-dev
	set -e; for kernels in $(SLOWER_KERNELS); do \
		echo "BITSWITCH_KERNELS=$$kernels"; BITSWITCH_KERNELS=$$kernels $(BIN)/python -m pytest; \
	done

build-tools: install-dev
	$(BIN)/python -m pip install --quiet cmake ninja "nanobind>=2.4"

# PyTorch is not built with sanitizers, so their libraries have to be there before it; what Python leaves behind is no leak.
sanitize: build-tools
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCMAKE_BUILD_TYPE=Release \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DBITSWITCH_SANITIZE=$(SANITIZERS)
	$(BIN)/cmake --build $(SANITIZED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	BITSWITCH_NATIVE="$$(ls $(SANITIZED)/_native*.so)" \
	$(BIN)/python -m pytest -p tests.native.sanitized $(KERNEL_TESTS)
