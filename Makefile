# Every target sets itself up: a plain clone and Python 3.11 or newer are enough.
#   make demo       five data sets, each under several algorithms, and a page of what came out, chapter by chapter
#   make quick      the first of its chapters: a table and a picture within a minute
#   make test       what the README says: default tests and doctests
#   make test-all   slow tests and benchmarks' checks too
#   make test-newest  default tests with the newest packages of all, or with CONSTRAINTS=constraints-newest.txt those
#   make lint       ruff and mypy
#   make bench      side by side with peers
#   make docs       the site, tutorials executed, into docs/_build/html; warnings are errors
#   make dist       a release: sdist and wheel, built, checked, installed into an empty environment and tried
#   make clean      remove everything that these made
# Another interpreter: make test PYTHON=python3.12 (after make clean)

.DEFAULT_GOAL := test
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: demo quick test test-all test-newest lint bench docs dist clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
NEW_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 11))

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3 python; do \
	"$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$p"; break; }; done)
endif

ifndef NEWEST
NEWEST = $(shell for v in 14 13 12; do for p in python3.$$v $$(ls -d "$$(pyenv root 2>/dev/null)"/versions/3.$$v.*/bin/python 2>/dev/null); do \
	"$$p" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $$v))" >/dev/null 2>&1 && { echo "$$p"; exit; }; done; done)
endif

demo: $(VENV)/.ready-demo
	$(BIN)/python demo/run.py

quick: $(VENV)/.ready-demo
	$(BIN)/python demo/run.py radon

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ""

# On the newest Python and from nothing each time: what came out since is what one wants to meet.
test-newest:
	@test -n "$(NEWEST)" || { echo "Python 3.12 or newer, with venv, is needed and was not found: make test-newest NEWEST=python3.13"; exit 1; }
	rm -rf $(VENV)-newest
	$(NEWEST) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip -qq --disable-pip-version-check install $(addprefix -c ,$(CONSTRAINTS)) -e ".[test]"
	$(VENV)-newest/bin/python -m pip freeze --exclude-editable | grep -i -E "^(jax|jaxlib|numpyro|arviz|numpy|equinox|flax|optax)=="
	$(VENV)-newest/bin/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-bench $(VENV)-particles/.ready
	$(BIN)/python -m benchmarks --particles-python $(VENV)-particles/bin/python

# particles 0.4 wants NumPy before 2
$(VENV)-particles/.ready: $(VENV)/.made
	@$(PYTHON) -m venv $(VENV)-particles
	@$(VENV)-particles/bin/python -m pip -qq --disable-pip-version-check install "numpy<2" particles==0.4
	@touch $@

docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

dist: $(VENV)/.ready-dist
	$(BIN)/python -m tools.dist

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-particles build dist docs/_build docs/tutorials *.egg-info demo/output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer, with venv, is needed and was not found."; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is older than Python 3.11."; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# .ready-demo holds the extra named demo, and so on; each is renewed when the project's requirements change.
$(VENV)/.ready-%: pyproject.toml constraints.txt $(VENV)/.made
	@echo "Installing ppl_ext[$*] into $(VENV); the first time takes a minute or two"
	@$(PIP) install -c constraints.txt setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e ".[$*]"
	@touch $@
