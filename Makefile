# make demo   trains the demo            make test   runs all tests: test-python, test-kernels
# make setup  only prepares .venv        make bench  measures the step against torch; with
#                                        BENCH_ARGS="--help" and the like only bench_step.py
#
# Each works alone on a fresh clone. TORCH chooses another torch: make test TORCH=torch==2.14.1
# FUSEDTRICKS_CUDA=0 leaves the CUDA backend out, FUSEDTRICKS_CUDA_ARCHS=90 compiles it for one GPU
# generation only (setup.py says more).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BENCH_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(TORCH)
# The compiled extension lies in the source tree, so only one environment's is there at a time.
BUILT := build/.built-$(subst /,-,$(VENV))-$(TORCH)-cuda-$(FUSEDTRICKS_CUDA)-$(subst ;,-,$(FUSEDTRICKS_CUDA_ARCHS))
CPP_NAMES := -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
SOURCES := setup.py build_cuda.py $(shell find csrc $(CPP_NAMES))

.PHONY: demo test test-python test-kernels setup bench lint format clean
.DELETE_ON_ERROR:

demo: setup
	$(BIN)/fusedtricks demo $(DEMO_ARGS)

test: test-python test-kernels

test-python: setup
	$(BIN)/python -m pytest -n auto $(TEST_ARGS)

# The CUDA kernels, executed on the CPU under the address and undefined-behaviour sanitizers.
test-kernels: setup
	$(BIN)/python -m tests.cuda_shim.run $(KERNEL_TEST_ARGS)

setup: $(BUILT)

bench: setup
	$(BIN)/python bench/bench_step.py $(BENCH_ARGS)
	$(if $(BENCH_ARGS),,$(BIN)/python bench/bench_host.py)
	$(if $(BENCH_ARGS),,$(BIN)/python bench/bench_busy.py)

$(INSTALLED): pyproject.toml Makefile
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'fusedtricks needs Python 3.10 or newer; set PYTHON=...')"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install "$(TORCH)" "setuptools>=77" wheel ninja "pybind11>=2.12" numpy
	@rm -rf $(VENV)/.installed-* build/.built-* build/temp* build/lib* build/bdist*
	@touch "$@"

$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "== compiling the extension, installing the demo's and the tests' packages: about a minute, two to three with CUDA"
	@PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@rm -f build/.built-*
	@mkdir -p build
	@touch "$@"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests $(CPP_NAMES) | xargs $(BIN)/clang-format --dry-run --Werror

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests $(CPP_NAMES) | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build *.egg-info fusedtricks/_C*.so
