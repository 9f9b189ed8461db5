# make demo, make test: the first run creates .venv. PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# HASHES=no: install the versions of requirements.lock without comparing digests, which differ
# between package indexes.
HASHES ?= yes
# Extras of `make install`, such as detection,attacks,shards.
EXTRAS ?= detection
# A process that is done takes over half of the tests of another one, mostly whole files.
SPREAD := -n auto --maxprocesses 8 --dist worksteal

CHECK_PYTHON = $(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(v < (3, 10) and \
	f'Python {v[0]}.{v[1]} is too old. Use 3.10 or newer: make PYTHON=python3.12')"
LOCKED_VERSIONS = sed -nE 's/^([a-z].*) \\$$/\1/p' requirements.lock > $(VENV)/versions.txt

.DEFAULT_GOAL := help
.PHONY: help install setup lock demo docs test test-fast bench lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: ## install the packages and Detectron2 into .venv, without the tools for development
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(LOCKED_VERSIONS)
	$(PIP) -c $(VENV)/versions.txt ".[$(EXTRAS)]"
	$(if $(findstring detection,$(EXTRAS)),$(BIN)/robust-backbones install-detectron2)

setup: $(READY) ## create .venv for development: tests, documentation, Detectron2

$(READY): setup.py requirements.lock robust_backbones/core/extras.py \
		robust_backbones/commands/install_detectron2.py \
		robust_backbones/core/detectron2_patches.py robust_backbones/core/missing_extension.py
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
ifeq ($(HASHES),no)
	$(LOCKED_VERSIONS)
	$(PIP) -c $(VENV)/versions.txt -e ".[dev,docs]"
	$(PIP) -c $(VENV)/versions.txt --no-deps imagecorruptions-imaug
else
	sed -nE '/^(packaging|setuptools|wheel)==/,/# via/p' requirements.lock > $(VENV)/build.lock
	$(PIP) --require-hashes -r $(VENV)/build.lock
	$(PIP) --require-hashes --no-deps --no-build-isolation -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
endif
	$(BIN)/python tools/install_detectron2.py --replace
	@touch $@

lock: ## resolve requirements.lock from setup.py (needs uv); UPGRADE=--upgrade takes newer versions
	uv pip compile setup.py --extra dev --extra docs --group lock --universal --python-version 3.10 $(UPGRADE) \
		--generate-hashes --custom-compile-command "make lock" --quiet --output-file requirements.lock

demo: $(READY) ## pretrain, convert, detect and compare on bundled data (about 12 minutes)
	$(BIN)/python tools/demo.py

docs: $(READY) ## build the documentation, output/site/index.html
	$(BIN)/python docs/build.py

test: $(READY) ## run all tests on all cores; TESTS=tests/unit/test_zoo.py selects some
	$(BIN)/python -m pytest $(SPREAD) $(TESTS)

test-fast: $(READY) ## run the tests that are not marked slow
	$(BIN)/python -m pytest $(SPREAD) -m "not slow" $(TESTS)

bench: $(READY) ## compare speed with other libraries (quick), write benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

lint: $(READY) ## check style, types and wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.support.words

format: $(READY) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and output
	rm -rf $(VENV) output
