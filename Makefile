# `make demo` and `make test` set up everything they need: a virtual environment, the package, the default model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles what is imported; compiling all that is installed would nearly double pip's work.
INSTALL := $(PIP) install --quiet --no-compile --editable
MINIMUM := .venv-minimum

export TOKENIZERS_PARALLELISM ?= false

# Debian's programs that speak and make sounds: data to learn hearing from needs no download.
SPEECH := flite sox espeak-ng

.PHONY: help demo demo-hear test attack test-minimum lint format docs evidence bench clean speech postgres

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## see in a few minutes whether a paper helps, on a real model and real text
	@$(BIN)/broadsheet demo

demo-hear: $(VENV)/.installed-hear speech  ## teach the built-in model to hear, on sounds and speech made here
	@$(BIN)/broadsheet hear make-data --out runs/clips
	@$(BIN)/broadsheet apply salmonn runs/clips --warm-start-steps 300 --steps 60,60 --activate no --out runs/ears
	@row=$$(head -1 runs/clips/test.jsonl); field() { echo "$$row" | sed "s/.*\"$$1\": \"\([^\"]*\)\".*/\1/"; }; \
	echo "said in a clip it has not heard: $$(field answer)"; \
	$(BIN)/broadsheet hear listen "runs/clips/$$(field audio)" "What is said?" --model runs/ears

# A worker a core. `make test PAPER=gem` runs what tests one paper.
test: $(VENV)/.installed-dev speech postgres  ## unit tests, the default model on real text, the numeric oracles; PAPER=gem: one paper's
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder --budget $(if $(PAPER),--paper $(PAPER))

# A smaller part of each attack is in `make test`. All of it takes half an hour on two cores.
attack: $(VENV)/.installed-dev speech  ## kill, feed and damage all commands at many places, and record the figures
	$(BIN)/python benchmarks/attack.py --record
	$(BIN)/python docs/generate.py

test-minimum: $(MINIMUM)/.installed  ## the tests again, with the oldest versions that pyproject.toml allows
	$(MINIMUM)/bin/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder $(if $(PAPER),--paper $(PAPER))

lint: $(VENV)/.installed-dev  ## formatting, lint, types, one-way imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-docs  ## build the documentation into site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# What is older than its code is run again; stop it at any time, and run it again to go on. PAPER=gem runs one paper's,
# AGAIN=1 all. Data that a command names is looked for in DATA: make evidence DATA=folder
evidence: $(VENV)/.installed-dev speech  ## record again what is older than its code (hours); PAPER=gem: one paper's
	$(BIN)/python tests/oracles.py tests/oracles --record
	$(BIN)/python -m broadsheet.page.replay $(PAPER) $(if $(AGAIN),--again) $(if $(DATA),--data $(DATA))

bench: $(VENV)/.installed-dev speech  ## measure speed ratios side by side
	$(INSTALL) '.[bench]'
	$(BIN)/python benchmarks/curate.py
	$(BIN)/python benchmarks/detect.py
	$(BIN)/python benchmarks/attend.py
	$(BIN)/python benchmarks/transnormer.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/rank.py
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/hear.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/train.py

clean:  ## remove what the other commands made here; the model cache stays
	rm -rf $(VENV) $(MINIMUM) build dist site runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("broadsheet needs Python 3.11 or newer, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing broadsheet into $(VENV) (PyTorch is the largest part) …"
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing broadsheet and its development tools into $(VENV) …"
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-hear: pyproject.toml | $(VENV)/bin/python
	@echo "installing broadsheet with ears into $(VENV) …"
	@$(INSTALL) '.[hear]'
	@touch $@ $(VENV)/.installed

$(MINIMUM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(MINIMUM)
	@echo "installing the oldest versions into $(MINIMUM) …"
	@$(MINIMUM)/bin/python -m pip install --quiet uv
	@$(MINIMUM)/bin/uv pip install --quiet --python $(MINIMUM)/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

speech:
	@for program in $(SPEECH); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing$$missing …"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	else \
		echo "this needs$$missing: sudo apt-get install$$missing"; exit 1; \
	fi

# The tests start it themselves. Without it they leave out what needs it, and say so.
postgres:
	@if ls /usr/share/postgresql/*/extension/vector.control >/dev/null 2>&1; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing PostgreSQL with pgvector …"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			$$(apt-cache search --names-only '^postgresql-[0-9]+-pgvector$$' | cut -d' ' -f1 | sort -V | tail -1) >/dev/null \
			|| echo "it could not be installed: the tests that need it are left out"; \
	else \
		echo "without PostgreSQL and pgvector some tests are left out: sudo apt-get install postgresql-17-pgvector"; \
	fi

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	@$(INSTALL) '.[docs]'
	@touch $@
