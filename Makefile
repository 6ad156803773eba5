# `make demo` and `make test` set up everything they need: a virtual environment, the package, the default model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

export TOKENIZERS_PARALLELISM ?= false

# Debian's programs that speak and make sounds: data to learn hearing from needs no download.
SPEECH := flite sox espeak-ng

.PHONY: help demo demo-hear test lint format docs evidence bench clean speech

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
test: $(VENV)/.installed-dev speech  ## unit tests, the default model on real text, the numeric oracles; PAPER=gem: one paper's
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder --budget $(if $(PAPER),--paper $(PAPER))

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

# Labelled data is the caller's: make evidence STS=stsb-dev.tsv BEIR=cranfield
evidence: $(VENV)/.installed-dev speech  ## record again what the pages and rungs rest on (hours)
	$(BIN)/python tests/oracles.py tests/oracles --record
	$(BIN)/broadsheet try lastde --pairs 40 --perturbations 3 --regenerations 2 --record
	$(BIN)/broadsheet try lm_infinite --lengths 1024,4096,8192,12288 --texts 3 --record
	$(BIN)/broadsheet try infllm --lengths 4096,8192 --texts 3 --questions 6 --record
	$(BIN)/broadsheet try longheads --lengths 4096 --texts 3 --questions 6 --record
	$(BIN)/broadsheet try flexprefill --lengths 4096,8192 --texts 3 --questions 6 --record
	$(BIN)/broadsheet try transnormer --steps 200 --record
	$(BIN)/broadsheet try aded --tokens 40 --record
	$(BIN)/broadsheet try loogle --documents 3 --questions 6 --record
	$(BIN)/broadsheet apply first pydocs --train --out runs/easy --minutes 13 --brief --titles --words 20 \
		--ranking-only --loss softmax --sizes 2-4 --depth 1000 --lists 7000 --learning-rate 1e-4
	$(BIN)/broadsheet apply first pydocs --train --reranker runs/easy --out runs/first --minutes 15 --titles --words 20 \
		--sizes 4-10 --shuffle 0.2 --lists 4000 --learning-rate 5e-5 --window 10 --step 5
	$(BIN)/broadsheet try first --reranker runs/first --titles --words 20 --queries 100 --dtype bfloat16 --record
	$(BIN)/broadsheet try pg_rank --record
	$(BIN)/broadsheet try fullrank --reranker runs/first --candidates 20 --queries 40 --titles --words 20 --dtype bfloat16 --record
	$(BIN)/broadsheet try embedding_overview --dtype bfloat16 $(if $(STS),--sts $(STS)) --record
	$(if $(BEIR),$(BIN)/broadsheet try embedding_meets_llm --data $(BEIR) --words 60 --dtype bfloat16 --record)
	$(BIN)/broadsheet try token_prepending $(if $(STS),--sts $(STS)) --exits 2,3,4,6,8 --dtype bfloat16 --record
	$(BIN)/broadsheet try gem --steps 60 --contrast-steps 60 --length 64 $(if $(STS),--sts $(STS)) --record
	$(BIN)/broadsheet try llm_ql --record
	$(BIN)/broadsheet try ullme $(if $(STS),--sts $(STS)) --dtype bfloat16 --record
	$(BIN)/broadsheet try llm_embedder --record
	$(BIN)/broadsheet try lexical_specialization --words wordnet $(if $(STS),--sts $(STS)) --record
	$(BIN)/broadsheet study dense_retrieval --preset A --layers 6,12,30 --steps 15 --record
	$(BIN)/broadsheet try salmonn --warm-start-steps 300 --steps1 80 --steps2 120 \
		--learning-rate 3e-4 --lora-learning-rate 1e-3 --factor 0.1 \
		--activation-steps 24 --activation-learning-rate 3e-4 --stories 24 --seed 1 --record

bench: $(VENV)/.installed-dev speech  ## measure speed ratios side by side
	$(BIN)/python benchmarks/detect.py
	$(BIN)/python benchmarks/attend.py
	$(BIN)/python benchmarks/transnormer.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/rank.py
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/hear.py

clean:  ## remove what the other commands made here; the model cache stays
	rm -rf $(VENV) build dist site runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("broadsheet needs Python 3.11 or newer, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing broadsheet into $(VENV) (PyTorch is the largest part) …"
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing broadsheet and its development tools into $(VENV) …"
	@$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-hear: pyproject.toml | $(VENV)/bin/python
	@echo "installing broadsheet with ears into $(VENV) …"
	@$(PIP) install --quiet --editable '.[hear]'
	@touch $@ $(VENV)/.installed

speech:
	@for program in $(SPEECH); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing$$missing …"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	else \
		echo "this needs$$missing: sudo apt-get install$$missing"; exit 1; \
	fi

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	@$(PIP) install --quiet --editable '.[docs]'
	@touch $@
