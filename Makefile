# Two commands: `make run` (set up, run the flagship) and `make test` (set up, run the quick suite).
# uv is used when present, venv and pip otherwise; a stamp file makes the second call instant.
SHELL := /bin/bash
# uv compiles no Python: what is imported once is kept, or each process takes five seconds longer
export PYTHONDONTWRITEBYTECODE :=
PYTHON ?= python3
VENV ?= .venv
NEWEST_VENV ?= .venv-newest
BIN := $(VENV)/bin
PYTEST_ARGS ?=
RUN_ARGS ?=
WORKERS ?= 2

# $(call install,VENV,PYTHON,REQUIREMENTS)
define install
	if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(2) $(1) && \
		uv pip install --quiet --python $(1)/bin/python --constraint constraints.txt $(3); \
	else \
		$(2) -m venv $(1) && $(1)/bin/python -m pip install --quiet --constraint constraints.txt $(3); \
	fi
endef

# neural-tangents without tensorflow: the bridge stands in for what it would import
define reference
	if command -v uv >/dev/null; then \
		uv pip install --quiet --python $(1)/bin/python --no-deps neural-tangents==0.6.5; \
	else \
		$(1)/bin/python -m pip install --quiet --no-deps neural-tangents==0.6.5; \
	fi
endef

.PHONY: run test test-slow test-gpu test-newest newest-env benchmark benchmark-gpu lint types gallery docs clean

run: $(VENV)/.run
	$(BIN)/dynamics run grokking $(RUN_ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not benchmark" $(PYTEST_ARGS)

# On a machine with a GPU, once `pip install 'jax[cuda13]'` has made JAX see it; JAX_PLATFORMS=cpu tries the tests themselves.
test-gpu: $(VENV)/.test
	JAX_PLATFORMS="$${JAX_PLATFORMS-cuda,cpu}" $(BIN)/python -m pytest -m "gpu and not benchmark" $(PYTEST_ARGS)

benchmark: $(VENV)/.test
	$(BIN)/python -m pytest -m benchmark tests/benchmarks --benchmark-enable -s $(PYTEST_ARGS)

# Those that also make sense where the seconds are an accelerator's; the ratios that CPUs are held to are printed only.
benchmark-gpu: $(VENV)/.test
	JAX_PLATFORMS="$${JAX_PLATFORMS-cuda,cpu}" $(BIN)/python -m pytest -m "gpu and benchmark" tests/benchmarks -s $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright --pythonpath $(BIN)/python

# The README's table of experiments; with RUNS=FOLDER the verdicts of the runs there, and quick ones' figures, go into docs/ too.
gallery: $(VENV)/.test
	$(BIN)/python -m dynamics.runs.command.gallery $(RUNS)

# The site, into build/site/html: a warning is an error; then what its tests say of it, in Chromium where there is one.
docs: $(VENV)/.docs
	$(BIN)/python docs/site/build.py
	SITE=build/site/html $(BIN)/python -m pytest -m slow tests/test_site.py

# $(call newest,TARGET): the newest JAX needs Python 3.12 or later; the first interpreter that really answers is used
define newest
	+@python=""; \
	for candidate in python3.13 python3.12 $$(ls -d $$(pyenv root 2>/dev/null)/versions/3.1[23]*/bin/python 2>/dev/null | sort -rV); do \
		if $$candidate -c "import sys; sys.exit(sys.version_info < (3, 12))" 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "$@: no Python 3.12 or later answers here; the newest JAX was NOT tested"; exit 0; fi; \
	$(MAKE) --no-print-directory $(1) NEWEST_PYTHON=$$python
endef

test-newest:
	$(call newest,newest-suite)

newest-env:
	$(call newest,$(NEWEST_VENV)/.test)

.PHONY: newest-suite
newest-suite: $(NEWEST_VENV)/.test
	@$(NEWEST_VENV)/bin/python -c "import sys, jax; print('newest line: Python', sys.version.split()[0], 'jax', jax.__version__)"
	$(NEWEST_VENV)/bin/python -m pytest -n $(WORKERS) $(NEWEST_TESTS) $(PYTEST_ARGS)
	$(NEWEST_VENV)/bin/python -m pytest -m slow tests/test_experiments.py -k grokking.lazy_to_rich $(PYTEST_ARGS)

# What depends most on JAX itself: programs that are read and rewritten; the flagship is the rest. All: NEWEST_TESTS=tests.
NEWEST_TESTS ?= $(addprefix tests/test_,$(addsuffix .py,empirical on_cpus shifted))

$(VENV)/.run: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once)"
	@$(call install,$(VENV),$(PYTHON),-e '.[data]')
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	@echo "setting up $(VENV) with the extra 'test' (once)"
	@$(call install,$(VENV),$(PYTHON),-e '.[test]')
	@$(call reference,$(VENV))
	@touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.test
	@$(call install,$(VENV),$(PYTHON),-e '.[docs]')
	@touch $@

$(NEWEST_VENV)/.test: pyproject.toml constraints.txt
	@echo "setting up $(NEWEST_VENV) with $(NEWEST_PYTHON) and the newest JAX (once)"
	@$(call install,$(NEWEST_VENV),$(NEWEST_PYTHON),-e '.[test]')
	@touch $@

clean:
	rm -rf $(VENV) $(NEWEST_VENV) .pytest_cache .ruff_cache .hypothesis build dist
