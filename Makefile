# Every command of the project. Needs make and Python 3.11 or newer; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
HSDS := .venv-hsds
PEERS := .venv-peers
OLDEST_TESTS := tests/test_session.py tests/test_store.py tests/test_shards.py \
    tests/test_engines.py tests/test_zarr_store.py tests/test_import_zarr.py tests/adapters tests/interchange \
    tests/training/test_aligned.py tests/test_kept_logins.py tests/test_given_tokens.py
DEMO_DATA := build/demo

# Tests wait for servers and for each other more than they work: twice as many processes as most machines have cores.
IN_PARALLEL := -n 4
# Pure parts, and one path through everything.
QUICK_TESTS := tests/test_indexing.py tests/test_chunks.py tests/test_regions.py tests/test_shard_layout.py tests/test_transfer.py \
    tests/test_config.py tests/test_config_places.py tests/test_private_files.py tests/test_public_api.py tests/test_errors.py \
    tests/test_rooms.py tests/test_prose.py tests/cache/test_tiles.py tests/training/test_order.py tests/chaos/test_model.py \
    tests/embedded/rest/test_parsing.py tests/embedded/auth/test_sdk.py tests/embedded/storage/test_sdk.py tests/test_seed.py \
    tests/test_contexts.py tests/background/test_operations.py tests/training/test_aligned.py tests/adapters/test_xarray_engine.py

# Children of the tests would compile all modules anew, each time.
unexport PYTHONDONTWRITEBYTECODE

# Two pips must not write into one virtual environment.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SUFFIXES:

.PHONY: help install demo quick test test-oldest chaos check lint types docs notebooks bench clean

help:
	@echo "make demo         run examples/train_digits.py on an embedded backend of its own"
	@echo "make test         run the whole test suite (PYTEST_ARGS='-k name -x' to choose)"
	@echo "make quick        run the tests of what is pure, and one path through everything, in less than a minute"
	@echo "make test-oldest  run the client's tests with the oldest dependencies that pyproject.toml allows"
	@echo "make chaos        kill backends and writers, a thousand times, and look at what is there; CHAOS_ARGS='--rounds 50'"
	@echo "make check        lint, types and documentation"
	@echo "make docs         build the documentation into docs/_build/html"
	@echo "make notebooks    execute the notebooks of examples/ and store their outputs; NOTEBOOKS='store-and-slice' to choose"
	@echo "make bench        measure, next to peers that it installs; BENCH_ARGS='bulk samples' to choose"
	@echo "make install      install what test, check and demo need, all at once"
	@echo "make clean        remove what these commands made"

# The shell runs its EXIT trap after Ctrl-C only if it leaves by its own exit.
demo: $(VENV)/.installed-example
	@echo "== examples/train_digits.py, data folder $(DEMO_DATA)"
	@export TENSORAGE_DATA_DIR="$(CURDIR)/$(DEMO_DATA)"; \
	trap '$(VENV)/bin/tensorage local stop' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	$(VENV)/bin/python examples/train_digits.py
	@echo "look at what it stored: $(VENV)/bin/tensorage tree --local --data-dir $(DEMO_DATA)"

# The tests that need the machine to themselves come last. pytest ends with 5 where no test was chosen.
test: $(VENV)/.installed-test
	@none=0; \
	$(VENV)/bin/python -m pytest $(IN_PARALLEL) -m 'not alone' $(PYTEST_ARGS) || { [ $$? -eq 5 ] && none=5; } || exit 1; \
	$(VENV)/bin/python -m pytest -m alone $(PYTEST_ARGS) || [ $$? -eq $$((5 - none)) ]

# Tests that draw examples draw a tenth of them here.
quick: $(VENV)/.installed-test
	EXAMPLES_ONE_IN=10 $(VENV)/bin/python -m pytest $(IN_PARALLEL) -m 'not alone' $(QUICK_TESTS) $(PYTEST_ARGS)

# The SDK of that age ships the auth package under its old name, gotrue, and imports one that has been renamed since.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest $(IN_PARALLEL) $(OLDEST_TESTS) $(PYTEST_ARGS) \
	    -W 'ignore:The `supafunc` package is deprecated:DeprecationWarning'

chaos: $(VENV)/.installed-test
	PYTHONPATH=tests $(VENV)/bin/python -m chaos $(CHAOS_ARGS)

# mypy takes as long as all else, and works on one core.
check: $(VENV)/.installed-check $(VENV)/.installed-docs
	@$(MAKE) --no-print-directory types & types=$$!; \
	$(MAKE) --no-print-directory lint docs; others=$$?; \
	wait $$types && exit $$others

lint: $(VENV)/.installed-check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-check
	$(VENV)/bin/mypy --strict

# Executes the notebooks of examples/, and stores them with their outputs.
notebooks: $(VENV)/.installed-test
	PYTHONPATH=tests $(VENV)/bin/python tests/notebooks.py $(NOTEBOOKS)

docs: $(VENV)/.installed-docs
	$(VENV)/bin/python -m sphinx -n -T -W --keep-going -q -b html docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

# PyTorch, and clients of every cloud, are installed for the case that needs them alone.
bench: $(VENV)/.installed-bench $(HSDS)/.installed $(if $(filter beside,$(BENCH_ARGS)),$(PEERS)/.installed)
	$(VENV)/bin/python -m benchmarks $(BENCH_ARGS)

clean:
	@if [ -x $(VENV)/bin/tensorage ]; then \
	    TENSORAGE_DATA_DIR="$(CURDIR)/$(DEMO_DATA)" $(VENV)/bin/tensorage local stop; \
	fi
	rm -rf $(VENV) $(OLDEST) $(HSDS) $(PEERS) build dist docs/_build docs/examples
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- installation -----------------------------------------------------------------------------------

# Kept, though only on the way to something else.
.PRECIOUS: %/.pip

# pip installs dependency groups from 25.1 on, and a virtual environment begins with an older one.
%/.pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("tensorage needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0])'
	@echo "== making $*"
	@$(PYTHON) -m venv $*
	@$(call pip,$*) --upgrade 'pip >= 25.1'
	@touch $@

# Packages that test, check and demo need, by one run of pip in place of four.
install: $(VENV)/.pip
	@echo "== installing tensorage and what its tests and checks need into $(VENV)"
	@$(call pip,$(VENV)) --editable '.[local,storage,dask,xarray]' --group test --group check --group docs
	@touch $(addprefix $(VENV)/.installed-,test check docs example)

# The project itself in the same call as a dependency group, so that pip resolves both together.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.pip
	@echo "== installing tensorage and its dependency group \"$*\" into $(VENV)"
	@$(call pip,$(VENV)) --editable '.[local,storage,dask,xarray]' --group $*
	@touch $@

$(OLDEST)/.installed: pyproject.toml .ci/floors.py $(OLDEST)/.pip
	@echo "== installing tensorage and its oldest dependencies into $(OLDEST)"
	@$(call pip,$(OLDEST)) packaging
	@$(OLDEST)/bin/python .ci/floors.py > $(OLDEST)/floors.txt
	@$(call pip,$(OLDEST)) --editable '.[local,storage,dask,xarray]' --group test-client --constraint $(OLDEST)/floors.txt
	@touch $@

# A server to measure against, with dependencies of its own that need not fit ours.
$(HSDS)/.installed: pyproject.toml $(HSDS)/.pip
	@echo "== installing HSDS into $(HSDS)"
	@$(call pip,$(HSDS)) --group bench-hsds
	@touch $@

# Libraries to measure against, with dependencies of their own that need not fit ours.
$(PEERS)/.installed: pyproject.toml $(PEERS)/.pip
	@echo "== installing peers into $(PEERS)"
	@$(call pip,$(PEERS)) --group bench-peers
	@touch $@

# Modules are compiled when they are first loaded: most never are, and to compile all takes two thirds of an installation.
pip = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
