# SPDX-License-Identifier: Apache-2.0
#
# make run    the main job on the embedded simulator: no XPU, no Kubernetes, no root (ARGS=--once ends by itself)
# make test   the tests          make lint   formatters, linters, types, layers
# make e2e    the suite on a real kubelet (tests/e2e/README.md); make wheel   dist/*.whl
# Each does its own set-up in .venv and needs Python 3.11 or newer with headers and venv, and a C compiler.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := xpu_plugin tests
NATIVE := pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake proto/*.proto _xpuml/*.pyx _xpuml/*.pxd \
	_xpuml/simulator/*)

.PHONY: run test lint format e2e wheel clean

run: .stamps/installed
	$(BIN)/xpu-device-plugin demo $(ARGS)

test: .stamps/dev
	$(BIN)/python -m pytest tests --ignore=tests/e2e $(ARGS)

e2e: .stamps/dev
	$(BIN)/python -m pytest tests/e2e $(ARGS)

lint: .stamps/dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest xpu_plugin._xpuml
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint _xpuml
	$(BIN)/lint-imports
	$(BIN)/codespell

format: .stamps/dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

wheel:
	$(PYTHON) -m venv .venv
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

# --- set-up: built again only when what is compiled or generated changes ---------------------------------

.stamps/installed: $(NATIVE)
	@mkdir -p .stamps
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.stamps/dev: $(NATIVE)
	@mkdir -p .stamps
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .stamps/installed

clean:
	rm -rf .venv .stamps build dist xpu_plugin/proto
