# The front door. Every target sets up what it needs in .venv by itself; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Each file that pip fetches has a hash in a lock. Nothing is built but this project, and that without
# isolation: whatever pip would fetch to build with has no hash.
PIP := -m pip install --quiet --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --only-binary :all: --requirement
OURS := $(PIP) --no-deps --no-build-isolation --editable .
# A test that hangs ends the run, with the stack of every thread.
PYTEST := $(BIN)/python -m pytest -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --only-binary :all: --generate-hashes \
	--no-annotate --custom-compile-command "make lock" $(UPGRADE)
# Of the build of PyTorch without CUDA, which its makers keep elsewhere.
TORCH := 2.13.0
TORCH_CPU_HASH := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b

# Levels that hold only decisions and small I/O run side by side. The rest own the machine while they
# run: they start whole clusters, kill them and measure how long the answers take.
FAST_LEVELS := $(wildcard tests/tidy tests/unit tests/property tests/contract tests/sim tests/fuzz)
SLOW_LEVELS := $(wildcard tests/integration tests/security tests/e2e)
# Only this old release of tritonclient brings the program along; it is linked with CUDA's run time.
PERF_ANALYZER := build/perf_analyzer/bin/perf_analyzer
# For one example. An interpreter of its own: workers of everything else don't need it.
PYTORCH := build/pytorch/bin/python
# Debian 12's own, and the newest one found.
PYTHONS ?= /usr/bin/python3 python3.13
COUNT ?= 1000000
SEEDS ?= 1000
CASES ?= 10000
DEPLOYMENTS ?= 1000
SOURCES := $(wildcard src tests benchmarks docs examples)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-slow test-pythons wheels-arm64 fuzz fuzz-deployments compare-onnx sim sim-planted longwork check perf-analyzer pytorch docs bench bench-faults bench-plan bench-evaluation bench-recovery bench-tenants bench-demo clean lock test-lowest
.DELETE_ON_ERROR:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.stamp-dev  ## install everything for development into .venv

demo: $(VENV)/.stamp-demo  ## start a cluster of three nodes, break it in five ways, report what clients saw
	$(BIN)/understudy demo

test: test-fast test-slow  ## run every test

test-fast: $(VENV)/.stamp-dev  ## run the tests that need no cluster
	$(PYTEST) --numprocesses 2 $(FAST_LEVELS)

test-slow: $(VENV)/.stamp-dev $(PERF_ANALYZER) $(if $(CI),$(PYTORCH))  ## run the tests that start and break real processes
	$(PYTEST) $(SLOW_LEVELS)

test-pythons: $(VENV)/.stamp-dev  ## try other Pythons that are installed here: unit tests, and a cluster that answers
	sh tests/pythons.sh $(PYTHONS)

test-lowest: locks/lowest.txt | $(BIN)/python  ## try the oldest libraries that pyproject.toml allows: unit tests, and a cluster that answers
	$(PYTHON) -m venv --clear build/lowest
	build/lowest/bin/python $(LOCKED) $<
	build/lowest/bin/python $(OURS)
	build/lowest/bin/python -m pytest --quiet --numprocesses 2 -p no:cacheprovider tests/unit --ignore tests/unit/test_inference_messages.py
	build/lowest/bin/python -m pytest --quiet -p no:cacheprovider tests/integration/test_agent_faults.py tests/integration/test_gateway_grpc.py

lock: $(VENV)/.stamp-dev  ## write locks/ and those of the benchmarks' peers anew; UPGRADE=--upgrade takes newer versions
	$(LOCK) pyproject.toml --extra demo --group dev --output-file locks/dev.txt >/dev/null
	$(LOCK) pyproject.toml --extra demo --group build --constraint locks/dev.txt --output-file locks/demo.txt >/dev/null
	$(LOCK) pyproject.toml --group pytorch --constraint locks/dev.txt --output-file locks/pytorch.txt >/dev/null
	sed -i -e '/$(TORCH_CPU_HASH)/d' \
		-e '/^torch==$(TORCH) /a\    --hash=sha256:$(TORCH_CPU_HASH) \\' locks/pytorch.txt
	grep -q $(TORCH_CPU_HASH) locks/pytorch.txt  # else TORCH and its hash here are those of an older one
	$(LOCK) pyproject.toml --extra all --group build --group tests --resolution lowest-direct \
		--output-file locks/lowest.txt >/dev/null
	$(LOCK) --group examples --constraint locks/dev.txt --output-file locks/examples.txt >/dev/null
	for file in locks/perf-analyzer.txt benchmarks/peers/*/requirements.txt; do \
		$(LOCK) --no-deps --upgrade $$file --output-file $$file >/dev/null || exit 1; done

wheels-arm64: $(VENV)/.stamp-dev  ## ask whether everything that an installation and the demo need has wheels for arm64
	$(BIN)/uv pip install --quiet --dry-run --require-hashes --only-binary :all: --target build/arm64 \
		--python-version 3.11 --python-platform aarch64-manylinux_2_28 --requirement locks/demo.txt

fuzz: $(VENV)/.stamp-dev  ## feed COUNT generated inputs (default: a million) to each decoder of bytes from outside
	$(BIN)/python tests/fuzz/run.py --count $(COUNT)

fuzz-deployments: $(VENV)/.stamp-dev  ## deploy DEPLOYMENTS generated apps (default: 1,000) to a cluster, beside a good one
	$(BIN)/python tests/fuzz/deployments.py --count $(DEPLOYMENTS)

compare-onnx: $(VENV)/.stamp-dev  ## ask random ONNX models CASES things (default: 10,000), and ONNX Runtime directly
	$(BIN)/python tests/fuzz/onnx_compare.py --count $(CASES)

sim: $(VENV)/.stamp-dev  ## simulate SEEDS clusters (default: a thousand) under faults, and check what must hold
	$(BIN)/understudy simulate --count $(SEEDS)

longwork: $(VENV)/.stamp-dev  ## predictions and loads of up to a minute, under kills and freezes: about 8 minutes
	$(BIN)/python tests/longwork/run.py

sim-planted: $(VENV)/.stamp-dev  ## plant known bugs in a copy, one at a time, and see which seed finds each
	$(BIN)/python tests/sim/planted.py

check: $(VENV)/.stamp-dev  ## check format, lint, types and the rules of tests/tidy
	$(BIN)/ruff format --check --quiet $(SOURCES) || { echo "mend with: $(BIN)/ruff format $(SOURCES)"; exit 1; }
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/mypy
	$(PYTEST) --quiet --tb=short tests/tidy

perf-analyzer: $(PERF_ANALYZER)  ## fetch Triton's load generator, with which tests measure a cluster

pytorch: $(PYTORCH)  ## install PyTorch into build/pytorch, for the test of an example (on Linux up to 6 GB, with CUDA)

docs: $(VENV)/.stamp-dev  ## write the generated pages of docs/reference anew
	$(BIN)/python -m docs.generate

bench: $(VENV)/.stamp-dev  ## compare with other model servers and with HAProxy: about 12 minutes
	benchmarks/require wrk haproxy
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m docs.generate

bench-faults: $(VENV)/.stamp-dev  ## break Understudy and other servers in five ways, and count what failed: about 35 minutes
	benchmarks/require wrk haproxy
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m docs.generate

bench-plan: $(VENV)/.stamp-dev  ## make plans for up to 1,000 nodes and 10,000 apps, and lose nodes: about 8 minutes
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m docs.generate

bench-evaluation: $(VENV)/.stamp-dev  ## play failures against plans and simpler schemes, 5 to 1,000 nodes: about 10 minutes
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m docs.generate

bench-recovery: $(VENV)/.stamp-dev  ## kill every node of clusters with real models of 5 to 338 MB: about 8 minutes
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m docs.generate

bench-tenants: $(VENV)/.stamp-dev  ## a hostile tenant beside a good one: about 6 minutes
	$(BIN)/python -m benchmarks.tenants

bench-demo: demo  ## run the demo and keep its report, from which the README's figures are drawn
	cp build/demo/report.json benchmarks/results/demo.json
	$(BIN)/python -m docs.generate

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf examples/*/understudy-data
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.stamp-%: locks/%.txt pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) for $* (the first time takes one to two minutes)"
	@$(BIN)/python $(LOCKED) $<
	@$(BIN)/python $(OURS)
	@touch $@

$(PERF_ANALYZER): locks/perf-analyzer.txt | $(BIN)/python
	@echo "fetching perf_analyzer"
	@$(BIN)/python $(LOCKED) $< --no-deps --upgrade --target build/perf_analyzer
	@touch $@

# Where pip finds a build without CUDA, that is enough; what the lock has for Linux only is CUDA.
$(PYTORCH): locks/pytorch.txt | $(BIN)/python
	@echo "installing PyTorch into build/pytorch"
	@$(PYTHON) -m venv --clear build/pytorch
	@sed -e 's/^torch==[^ ]*/&+cpu/' -e "s/sys_platform == 'linux'/sys_platform == 'none'/" $< >build/pytorch/cpu.txt
	@$(PYTORCH) $(LOCKED) build/pytorch/cpu.txt 2>/dev/null || $(PYTORCH) $(LOCKED) $<
	@$(PYTORCH) $(OURS)
	@touch $@
