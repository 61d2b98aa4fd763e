# make demo: environment, installation, corpus, pretraining, fine-tuning, a table of word error rates
# make test: environment, installation, the test suite in JOBS processes of one thread each
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	PATH="$(CURDIR)/$(BIN):$$PATH" recipes/librispeech/run.sh --preset demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy speechssl tools

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: $(VENV)/bin/python setup.cfg pyproject.toml
	# Bytecode is made where a module is first imported: for all of torch beforehand it would take a minute.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) exp data build *.egg-info
