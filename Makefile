# SPDX-License-Identifier: Apache-2.0
#
# make run    the main job on the embedded simulator: no XPU, no Kubernetes, no root (ARGS=--once ends by itself)
# make test   the tests          make lint   formatters, linters, types, layers
# make e2e    the suite on a real kubelet (tests/e2e/README.md); make format   formats Python and C
# make explore   changes of VFs by random search in virtual time: a million steps, or ARGS="--steps N --seed S"
# make fuzz   what reads others' bytes, by coverage-guided fuzzing: a minute, or ARGS="--seconds N --seed S TARGET..."
# make soak   the whole plugin in a storm: three minutes, or ARGS="--minutes N --seed S --restarts N"
# make coverage   the tests, and which lines of Python and of the binding they run (needs Python 3.11 and gcc)
# make sanitize   the tests of what is written in C, with ASan and UBSan in binding and simulator (needs gcc)
# make bench   what the plugin costs beside references: a quarter of an hour, or two minutes with QUICK=1 (tests/benchmarks)
# make instructions   of the hot paths, by callgrind, against a baseline: fails when there are 10 % more
# make helm   builds Helm into build/bin, for the tests of the chart (needs Go; minutes, once)
# make wheel   dist/*.whl; make audit   is it the stable ABI?; make wheeltest   does it work, installed elsewhere?
# make image   the container image, by build.sh; make imagetest   what is put into it (docker/README.md)
# Each does its own set-up in .venv and needs Python 3.11 or newer with headers and venv, and a C compiler.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := xpu_plugin tests
C_SOURCES := $(wildcard _xpuml/simulator/*.[ch] tests/*/*.[ch])
NATIVE := pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake proto/*.proto _xpuml/*.pyx _xpuml/*.pxd \
	_xpuml/simulator/*)

# Both are inherited by every process that a test starts.
MEASURE = COVERAGE_FILE=$(CURDIR)/build/coverage/data COVERAGE_CORE=ctrace build/trace/bin/python -m coverage
# A finding ends its process with 99 and is written to a file, so that no test can take it for a crash it
# expects. Faults stay with the kernel: tests want to see SIGSEGV, SIGBUS and SIGFPE. Compilers run without all that.
FINDING = $(CURDIR)/build/sanitize/finding
SANITIZED = LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0:exitcode=99:log_path=$(FINDING) \
	UBSAN_OPTIONS=print_stacktrace=1:exitcode=99:log_path=$(FINDING) PYTHONMALLOC=malloc \
	CC="env -u LD_PRELOAD $(CC)" CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"

# What the benchmark compares with, where there is Go.
GO_PLUGIN := $(if $(shell command -v go),build/bench/goplugin)
PLUGIN_SOURCES := $(wildcard xpu_plugin/*.py xpu_plugin/*/*.py)

.PHONY: run test instructions bench explore fuzz soak coverage sanitize e2e image imagetest \
	lint format helm wheel audit wheeltest clean

run: .stamps/installed
	$(BIN)/xpu-device-plugin demo $(ARGS)

test: .stamps/dev
	$(BIN)/python -m pytest tests --ignore=tests/e2e --ignore=tests/image $(ARGS)

explore: .stamps/dev
	$(BIN)/python -m tests.model.exploring $(ARGS)

fuzz: .stamps/fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: .stamps/dev
	$(BIN)/python -m tests.endurance.soak $(ARGS)

instructions: .stamps/dev
	$(BIN)/python -m tests.benchmarks.instructions $(ARGS)

bench: .stamps/bench $(GO_PLUGIN)
	$(BIN)/python -m tests.benchmarks --plugin build/bench/bin/xpu-device-plugin $(if $(QUICK),--quick) \
		$(if $(GO_PLUGIN),--peer constant-go='$(GO_PLUGIN) {directory} {devices}') $(ARGS)

coverage: .stamps/trace
	rm -rf build/coverage && mkdir -p build/coverage
	$(MEASURE) run --source=$(CURDIR)/xpu_plugin,$(CURDIR)/_xpuml \
		-m pytest tests --ignore=tests/e2e --ignore=tests/image $(ARGS)
	build/trace/bin/python -m tests.support.torn build/coverage
	$(MEASURE) combine --quiet
	$(MEASURE) report
	$(MEASURE) report --format=total --fail-under=95 --include='xpu_plugin/*'
	$(MEASURE) report --format=total --fail-under=95 --include='_xpuml/*'

sanitize: .stamps/sanitize
	rm -f $(FINDING).*
	$(SANITIZED) build/sanitize/bin/python -m pytest tests/native tests/edges/test_driver.py \
		tests/edges/test_worker.py $(ARGS); status=$$?; ! cat $(FINDING).* 2>/dev/null && exit $$status

e2e: .stamps/dev
	$(BIN)/python -m pytest tests/e2e $(ARGS)

image:
	./build.sh $(ARGS)

imagetest: .stamps/dev
	$(BIN)/python -m pytest tests/image $(ARGS)

lint: .stamps/dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest xpu_plugin._xpuml
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint _xpuml
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format: .stamps/dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/clang-format -i $(C_SOURCES)

helm: build/bin/helm

build/bin/helm:
	GOBIN=$(CURDIR)/$(@D) go install helm.sh/helm/v3/cmd/helm@v3.20.2

wheel:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -f dist/*.whl
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

audit: wheel .stamps/dev
	$(BIN)/abi3audit --strict dist/*.whl

wheeltest: wheel
	venv=$$(mktemp -d) && trap 'rm -rf "$$venv"' EXIT && $(PYTHON) -m venv "$$venv" && \
		"$$venv/bin/pip" install --quiet --disable-pip-version-check dist/*.whl && \
		cd "$$venv" && bin/xpu-device-plugin demo --once

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

.stamps/fuzz: .stamps/dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

# Other builds of the binding, each in a venv that borrows the tools of .venv: its packages, but not its .pth
# files, as they would bring its build along.
.stamps/trace: BUILD := -C wheel.py-api= -C cmake.define.XPU_TRACE=ON
.stamps/sanitize: BUILD := -C cmake.define.XPU_SANITIZE='address;undefined'
.stamps/trace .stamps/sanitize: .stamps/%: .stamps/dev
	$(BIN)/python -m venv --clear --without-pip build/$*
	site=$$(echo build/$*/lib/python3*/site-packages) && cp .venv/lib/python3*/site-packages/*coverage.pth $$site && \
		echo $(CURDIR)/.venv/lib/python3*/site-packages > $$site/tools.pth
	$(BIN)/pip --python build/$*/bin/python install --quiet --no-deps --editable . $(BUILD)
	@touch $@

# What is measured is installed as in the image: not editable, and with byte code.
.stamps/bench: .stamps/dev $(PLUGIN_SOURCES)
	test -x build/bench/bin/python || $(BIN)/python -m venv --without-pip build/bench
	site=$$(echo build/bench/lib/python3*/site-packages) && \
		echo $(CURDIR)/.venv/lib/python3*/site-packages > $$site/tools.pth
	$(BIN)/pip --python build/bench/bin/python install --quiet --no-deps --force-reinstall .
	@touch $@

build/bench/goplugin: $(wildcard tests/benchmarks/goplugin/*) .stamps/bench
	cd tests/benchmarks/goplugin && go build -o $(CURDIR)/$@ .

clean:
	rm -rf .venv .stamps build dist xpu_plugin/proto
