# make demo, make test: each sets up .venv at its first run. PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# HASHES=no: the versions of requirements.lock from any index, whose files may be other ones.
HASHES ?= yes
# A file's tests share what they set up, so that they stay together.
SPREAD := -n auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup lock demo docs test test-fast bench lint format clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY) ## make .venv with everything in it, Detectron2 included

$(READY): setup.py requirements.lock tools/install_detectron2.py
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(v < (3, 10) and f'Python 3.10 or newer is needed, this is {v[0]}.{v[1]}; use: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
ifeq ($(HASHES),no)
	sed -nE 's/^([a-z].*) \\$$/\1/p' requirements.lock > $(VENV)/versions.txt
	$(PIP) -c $(VENV)/versions.txt -e ".[dev,docs]"
	$(PIP) -c $(VENV)/versions.txt --no-deps imagecorruptions-imaug
else
	sed -nE '/^(packaging|setuptools|wheel)==/,/# via/p' requirements.lock > $(VENV)/build.lock
	$(PIP) --require-hashes -r $(VENV)/build.lock
	$(PIP) --require-hashes --no-deps --no-build-isolation -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
endif
	$(BIN)/python tools/install_detectron2.py
	@touch $@

lock: ## resolve requirements.lock anew from setup.py (needs uv); UPGRADE=--upgrade for newer versions
	uv pip compile setup.py --extra dev --extra docs --group lock --universal --python-version 3.10 $(UPGRADE) \
		--generate-hashes --custom-compile-command "make lock" --quiet --output-file requirements.lock

demo: $(READY) ## pretrain, convert, detect and show it, on the embedded data (about 10 minutes)
	$(BIN)/python tools/demo.py

docs: $(READY) ## write the documentation's site, output/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo output/site/index.html

test: $(READY) ## run all tests, on all cores; TESTS=tests/unit/test_zoo.py runs some
	$(BIN)/python -m pytest $(SPREAD) $(TESTS)

test-fast: $(READY) ## run the tests that are not marked slow
	$(BIN)/python -m pytest $(SPREAD) -m "not slow" $(TESTS)

bench: $(READY) ## measure speed against peers, quick form, into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## rewrite to the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and output
	rm -rf $(VENV) output
