# `make` lists what can be made. Everything runs in .venv, which `make setup` builds from the pinned requirements.

PYTHON ?= $(shell for python in python3.11 python3 python3.13 python3.12; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
REQUIRED := $(VENV)/.stamp-requirements
COMPILED := build/compiled
STAMP := $(COMPILED)/.stamp

# Processes that tests run in: many tests wait for nodes to start, die or time out.
CORES := $(shell nproc 2>/dev/null || echo 1)
WORKERS ?= $(shell echo $$(( $(CORES) < 7 ? $(CORES) + 1 : 8 )))

# The top-level directories of the package, as setup.py finds them, and their sources; in perf and tools nothing is compiled.
CODE := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))
SOURCES := $(shell find $(filter-out perf tools,$(CODE)) -name '*.c' -o -name '*.py' -o -name '*.pyi')

.DEFAULT_GOAL := help
.PHONY: help setup servers storm up unit test check format bench wheel pin clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv: pinned requirements, and this package, editable, its hot modules compiled

$(REQUIRED): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python of 3.11 or newer was found. On Debian: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What is compiled is imported from build/compiled, which src/dawnchorus_compiled.py sees to. The stamp is as old as the
# sources that were read, so that a change during the build counts. A library beside its source would be imported unchecked.
$(STAMP): $(REQUIRED) setup.py src/dawnchorus_compiled.py $(SOURCES)
	@mkdir -p $(COMPILED) && touch $@.begun
	@find $(CODE) src -name '*.so' -delete
	@cd $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		cp $(CURDIR)/src/dawnchorus_compiled.py . && echo 'import dawnchorus_compiled' > dawnchorus_compiled.pth
	$(BIN)/python setup.py --quiet build_ext --build-lib $(COMPILED)
	@ls $(COMPILED)/dawnchorus/*.so >/dev/null 2>&1 || echo "Nothing could be compiled: there is no C compiler, or no Python.h; on" \
		"Debian: apt-get install gcc python3-dev. Everything works without, interpreted: one wake takes a fifth longer." >&2
	@mv $@.begun $@

servers: ## have redis-server, PostgreSQL, strace and nft: installed from Debian if they may be, else said
	@.ci/servers

storm: setup servers ## start the default cluster, wake 10,000 agents of 100,000, show it beside Redis
	@$(BIN)/dawnchorus perf storm --agents 100000 --wake 10000

up: setup ## start and supervise the nodes of topology.toml, in the foreground
	@$(BIN)/dawnchorus up

unit: $(REQUIRED) ## unit tests: in memory and virtual time, no sockets, processes or waiting
	DAWNCHORUS_INTERPRETED=1 $(BIN)/python -m pytest -m "not real" --numprocesses=$(CORES) --hypothesis-profile=quick --durations=10

test: ## everything: format, lint, types, tests
	@$(MAKE) --no-print-directory --jobs=2 setup servers check
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal --durations=10

check: $(REQUIRED) ## format, lint, spelling and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(REQUIRED) ## format the code and repair what ruff can repair
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: setup ## microbenchmarks of what is hot
	$(BIN)/python -m pytest perf/benchmarks -o python_files='bench_*.py test_*.py' --benchmark-only

wheel: $(REQUIRED) ## build sdist and wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

# For every Python and platform at once, with markers: Debian's 3.11.2 needs packages that 3.11.7 does not. From the public
# index only: no address of this machine's own configuration may reach the file.
pin: setup ## resolve requirements/dev.txt anew from pyproject.toml, with hashes
	$(PYTHON) -m venv --clear build/pin
	build/pin/bin/python -m pip install --quiet --disable-pip-version-check uv
	env -u UV_INDEX -u UV_INDEX_URL -u UV_DEFAULT_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS build/pin/bin/uv pip compile \
		--quiet --no-config --native-tls --universal --python-version 3.11 --upgrade --all-extras --generate-hashes \
		--custom-compile-command "make pin" --output-file requirements/dev.txt pyproject.toml

clean: ## remove .venv and everything built; data under var/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
