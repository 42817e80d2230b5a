# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists the targets. Each sets up what it needs in .venv.
# Needs Python 3.11 or newer with headers and venv, and a C compiler.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := xpu_plugin tests docs/reference
C_SOURCES := $(wildcard _xpuml/simulator/*.[ch]) $(shell find tests -name "*.[ch]")
NATIVE := pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake proto/*.proto _xpuml/*.pyx _xpuml/*.pxd \
	_xpuml/simulator/*)

# The tests mostly wait, so there are more workers than cores. WORKERS=0 runs all in one process.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? 2 * cores : 8)))
PYTEST = -m pytest --numprocesses=$(WORKERS) --dist=worksteal
TESTS = tests --ignore=tests/e2e --ignore=tests/image

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
PLUGIN_SOURCES := $(shell find xpu_plugin -name '*.py')

# For all Pythons and machines at once, as docker/requirements.txt is.
LOCK = build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command 'make lock'

.PHONY: help run demo test coverage sanitize lint reference format test-random test-soak fuzz mutants e2e endurance test-image \
	test-wheel check-abi bench bench-instructions image wheel helm lock hooks clean

help: ## list the targets
	@sed -nE 's/^([a-z][a-z0-9-]*):.* ## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: .stamps/installed ## the main job over the simulator: no XPU, no Kubernetes, no root; ARGS=--once ends by itself
	$(BIN)/xpu-device-plugin demo $(ARGS)

demo: run ## the same

ifndef COVERAGE
test: .stamps/dev ## the tests; COVERAGE=1 measures them, too; WORKERS=N, ARGS="-k word"
	$(BIN)/python $(PYTEST) $(TESTS) $(ARGS)
else
# A traced build of the binding, which needs CPython 3.11. Fails below 95 % of the Python code or of the binding.
test: .stamps/trace
	rm -rf build/coverage && mkdir -p build/coverage
	$(MEASURE) run --source=$(CURDIR)/xpu_plugin,$(CURDIR)/_xpuml \
		$(PYTEST) $(TESTS) $(ARGS)
	build/trace/bin/python -m tests.support.torn build/coverage
	$(MEASURE) combine --quiet
	$(MEASURE) report
	$(MEASURE) report --format=total --fail-under=95 --include='xpu_plugin/*'
	$(MEASURE) report --format=total --fail-under=95 --include='_xpuml/*'
endif

coverage: ## make test COVERAGE=1: which lines of Python and of the binding the tests run
	$(MAKE) test COVERAGE=1

sanitize: .stamps/sanitize ## the tests of the C code, with ASan and UBSan in binding and simulator (needs gcc)
	rm -f $(FINDING).*
	$(SANITIZED) build/sanitize/bin/python $(PYTEST) tests/native tests/edges/worker/test_client.py \
		tests/edges/worker/test_server.py $(ARGS); status=$$?; ! cat $(FINDING).* 2>/dev/null && exit $$status

lint: .stamps/dev ## formatters, linters, types, layers, spelling
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest xpu_plugin._xpuml
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint _xpuml
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

reference: .stamps/dev ## generate the tables of docs/reference from the code
	$(BIN)/python -m cogapp -r -I docs/reference docs/reference/*.md

format: .stamps/dev ## format Python and C
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/clang-format -i $(C_SOURCES)

test-random: .stamps/dev ## changes of VFs by random search in virtual time: a million steps; ARGS="--steps N --seed S"
	$(BIN)/python -m tests.model.exploring $(ARGS)

test-soak: .stamps/dev ## the whole plugin in a storm: three minutes; ARGS="--minutes N --seed S --restarts N"
	$(BIN)/python -m tests.endurance.soak $(ARGS)

fuzz: .stamps/fuzz ## coverage-guided fuzzing of all parsers: a minute; ARGS="--seconds N --seed S TARGET..."
	$(BIN)/python -m tests.fuzz $(ARGS)

mutants: .stamps/mutants ## mutation score of xpu_plugin/model: a sample of 200; ARGS="--mutants N --seed S"
	build/mutants/bin/python -m tests.mutants $(ARGS)

e2e: .stamps/dev ## the suite on a real kubelet (tests/e2e/README.md); SLICE=compatibility: half of it, for old releases
	$(BIN)/python -m pytest tests/e2e $(if $(SLICE),-m $(SLICE)) $(ARGS)

# ROUNDS of each program; 0 leaves it out.
ROLLOUTS ?= 100
REBINDS ?= 300
STORM ?= 240
endurance: .stamps/dev ## long proofs: rollouts and rebinds on a real kubelet, a storm; ROLLOUTS=N REBINDS=N STORM=MINUTES
	[ "$(ROLLOUTS)" = 0 ] || $(BIN)/python -u -m tests.endurance.rollouts --surge --rounds $(ROLLOUTS) $(ARGS)
	[ "$(REBINDS)" = 0 ] || $(BIN)/python -u -m tests.endurance.rebinds --rounds $(REBINDS)
	[ "$(STORM)" = 0 ] || $(BIN)/python -u -m tests.endurance.soak --minutes $(STORM) --restarts 10000

image: ## the container image, by build.sh
	./build.sh $(ARGS)

test-image: .stamps/dev ## the tests of the contents of the image (docker/README.md)
	$(BIN)/python -m pytest tests/image $(ARGS)

bench: .stamps/bench $(GO_PLUGIN) ## what the plugin costs beside references: a quarter of an hour; QUICK=1: two minutes
	$(BIN)/python -m tests.benchmarks --plugin build/bench/bin/xpu-device-plugin $(if $(QUICK),--quick) \
		$(if $(GO_PLUGIN),--peer constant-go='$(GO_PLUGIN) {directory} {devices}') $(ARGS)

bench-instructions: .stamps/dev ## instructions of the hot paths, by callgrind: fails when there are 10 % more than before
	$(BIN)/python -m tests.benchmarks.instructions $(ARGS)

wheel: ## dist/*.whl, for CPython 3.11 and newer
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -f dist/*.whl
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

check-abi: wheel .stamps/dev ## does the wheel keep to Python's stable ABI?
	$(BIN)/abi3audit --strict dist/*.whl

test-wheel: wheel ## the demo and the data files from the wheel, installed in a new environment
	venv=$$(mktemp -d) && trap 'rm -rf "$$venv"' EXIT && $(PYTHON) -m venv "$$venv" && \
		"$$venv/bin/pip" install --quiet --disable-pip-version-check dist/*.whl && \
		cd "$$venv" && bin/xpu-device-plugin demo --once && \
		bin/python -c 'from xpu_plugin.edges.kernel_log_rules import read_rules; read_rules(None)'

helm: build/bin/helm ## Helm in build/bin, for the tests of the chart (needs Go; minutes, once)

build/bin/helm:
	GOBIN=$(CURDIR)/$(@D) go install helm.sh/helm/v3/cmd/helm@v3.20.2

lock: ## pin the newest development tools that pyproject.toml allows in requirements-*.txt
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv
	$(LOCK) --group dev --output-file requirements-dev.txt pyproject.toml
	$(LOCK) --group fuzz --output-file requirements-fuzz.txt
	$(LOCK) --group mutants --output-file requirements-mutants.txt

hooks: .stamps/dev ## have git run the quick part of make lint before each commit
	$(BIN)/pre-commit install

clean: ## remove all that is built
	rm -rf .venv .stamps build dist xpu_plugin/proto

# --- set-up: built again only when what is compiled or generated changes ---------------------------------

.stamps/installed: $(NATIVE)
	@mkdir -p .stamps
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.stamps/dev: $(NATIVE) requirements-dev.txt
	@mkdir -p .stamps
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@ .stamps/installed

.stamps/fuzz: .stamps/dev requirements-fuzz.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-fuzz.txt
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

# Not installed: the finder of an editable install would bring the plugin without mutants.
.stamps/mutants: .stamps/dev requirements-mutants.txt
	$(BIN)/python -m venv --clear --without-pip build/mutants
	echo $(CURDIR)/.venv/lib/python3*/site-packages > $$(echo build/mutants/lib/python3*/site-packages)/tools.pth
	$(BIN)/pip --python build/mutants/bin/python install --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements-mutants.txt
	@touch $@

build/bench/goplugin: $(wildcard tests/benchmarks/goplugin/*) .stamps/bench
	cd tests/benchmarks/goplugin && go build -o $(CURDIR)/$@ .
