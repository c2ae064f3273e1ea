# Everything runs in .venv, which the first target makes. `make PYTHON=python3.12 demo` chooses
# the interpreter; PIP_* variables of the environment reach pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

# What an installation depends on. Sources are no part of it: it is an editable one.
DECLARATIONS := pyproject.toml setup.cfg build_backend/carft_backend.py

.PHONY: demo test test-slow lint format wheel clean

demo: $(VENV)/.installed
	$(BIN)/carft demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# setuptools would also pack what an older build left in build/lib.
wheel: $(VENV)/.created
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

# The environment stays, since torch is a large download; `rm -r .venv` removes it.
clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamps keep a second run from asking the index again.
$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || \
	  { echo "'$(PYTHON)' is not to be found. Name a Python 3.10 to 3.13: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.10 to 3.13 is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
	    "Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo "'$(PYTHON)' cannot make environments: its venv module is missing" \
	    "(on Debian and Ubuntu: the package python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(DECLARATIONS)
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created $(DECLARATIONS)
	$(BIN)/python -m pip install --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-lint: $(VENV)/.created $(DECLARATIONS)
	$(BIN)/python -m pip install --editable '.[lint]'
	@touch $@ $(VENV)/.installed
