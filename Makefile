# Everything runs in .venv, which the first target makes. `make PYTHON=python3.12 demo` chooses
# the interpreter, VENV=.venv-3.12 another environment; PIP_* variables reach pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What pip installs besides; versions, for example.
REQUIREMENTS :=
PYTEST_ARGS ?=
# One more than the cores that the smallest machine has, since tests of launchers mostly wait.
WORKERS ?= 3
PARALLEL := -n $(WORKERS) --dist worksteal

# Tests that depend most on torch and on the interpreter, for `make test-oldest`.
OLDEST := python3.10
OLDEST_TESTS := tests/harness $(wildcard tests/test_runs_*.py) \
  $(addprefix tests/test_,$(addsuffix .py,algorithms arguments backbone hparams method_formulas \
  checkouts dataset_facts devices plugin prompts step training weights))

# Tests of floating-point computations, for `make test-cpus`.
NUMERICAL_TESTS := $(addprefix tests/test_,$(addsuffix .py,algorithms backbone check \
  every_method lora method_formulas own_methods peers step swad))
# For torch, MKL and oneDNN alike: with torch's variable alone, oneDNN would still use the matrix
# instructions of a CPU with AMX, for which torch then has no kernel in bf16.
AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
SSE4 := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41

# The files on which an installation depends, without sources because it is editable.
DECLARATIONS := pyproject.toml setup.cfg setup.py $(wildcard build_backend/*.py)

.PHONY: demo test test-slow test-gpu test-oldest test-cpus lint format docs wheel clean

demo: $(VENV)/.installed
	$(BIN)/carft demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) -m slow $(PYTEST_ARGS)

# Once on a machine with a GPU: steps that never wait, resuming, predictions, and with two GPUs ranks.
test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

# On the oldest torch that installs: `make OLDEST=/path/to/python3.10 test-oldest`.
test-oldest:
	$(MAKE) test PYTHON=$(OLDEST) VENV=.venv-oldest WORKERS=2 PYTEST_ARGS="$(PYTEST_ARGS) $(OLDEST_TESTS)" \
	  REQUIREMENTS="'torch>=2.6,<2.7' 'torchvision>=0.21,<0.22' 'numpy<2'"

# With the rounding of CPUs without AVX-512 and without AVX, with one thread and with two.
test-cpus: $(VENV)/.installed-test
	set -e; for threads in 1 2; do for variables in "$(AVX2)" "$(SSE4)"; do \
	  echo "OMP_NUM_THREADS=$$threads $$variables"; \
	  env OMP_NUM_THREADS=$$threads OMP_WAIT_POLICY=passive $$variables \
	    $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS) $(NUMERICAL_TESTS); \
	done; done

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, into site/: `python -m http.server -d site` shows it, search included.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# setuptools would also pack what an older build left in build/lib.
wheel: $(VENV)/.created
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

# The environments stay, since torch is a large download; `rm -r .venv*` removes them.
clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamps keep a second run from asking the index again.
$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || \
	  { echo "'$(PYTHON)' was not found. Name a Python 3.10 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
	    "Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || \
	  echo "Warning: this project was tried with Python 3.10 to 3.13; '$(PYTHON)' is" \
	    "$$($(PYTHON) -V 2>&1)."
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo "'$(PYTHON)' cannot make environments: its venv module is missing" \
	    "(on Debian and Ubuntu: the package python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(DECLARATIONS)
	$(BIN)/python -m pip install --editable '.[fast]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created $(DECLARATIONS)
	$(BIN)/python -m pip install $(REQUIREMENTS) --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-lint: $(VENV)/.created $(DECLARATIONS)
	$(BIN)/python -m pip install --editable '.[lint]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.created $(DECLARATIONS)
	$(BIN)/python -m pip install --editable '.[docs]'
	@touch $@ $(VENV)/.installed
