# make demo, make test: each sets up .venv at its first run. PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY) ## make .venv with everything in it, Detectron2 included

$(READY): setup.py constraints.txt tools/install_detectron2.py
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(v < (3, 10) and f'Python 3.10 or newer is needed, this is {v[0]}.{v[1]}; use: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps imagecorruptions-imaug
	$(BIN)/python tools/install_detectron2.py
	@touch $@

demo: $(READY) ## pretrain, convert, detect and show it, on the embedded data (about 10 minutes)
	$(BIN)/python tools/demo.py

test: $(READY) ## run all tests
	$(BIN)/python -m pytest

test-fast: $(READY) ## run the tests that are not marked slow
	$(BIN)/python -m pytest -m "not slow"

lint: $(READY) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## rewrite to the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and output
	rm -rf $(VENV) output
