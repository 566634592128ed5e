# Everything here works on a clean Debian or Ubuntu with git, make, python3 (3.11 to 3.13) and python3-venv.
# Nothing is installed outside this folder: uv goes to .tools/, the locked environment to .venv/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

UV_VERSION := 0.13.9
UV := .tools/uv-$(UV_VERSION)/bin/uv
PY := .venv/bin/python
BIN := .venv/bin
ROOMS := cluster actors serve_apps cli

# Cold starts are mostly compiling, so bytecode is written at install whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE
unexport VIRTUAL_ENV
unexport PYTHONPATH
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
# Where the machine has certificates of its own (a proxy's, say), uv trusts them as every other program here does.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS := 1
endif
# A `uv run` ancestor makes Ray give every actor its own environment; nothing here runs under one, and this holds it.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0

.PHONY: help demo test soak lint bench install compiled clean

help: ## Say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: .venv/.installed-demo compiled ## Start a cluster, register an agent, ask it, and show what was counted and refused
	@$(PY) -m examples.demo

test: lint .tools/.installed-oracle ## Check the code and run the tests
	@$(PY) -m pytest $(ARGS)

soak: export SOVEREIGN_SOAK := 1
soak: .venv/.installed-dev compiled .tools/.installed-oracle ## Run the same tests at their full size
	@$(PY) -m pytest $(ARGS)

lint: .venv/.installed-dev compiled ## Check style, types and the import rules
	@$(BIN)/ruff check -q
	@$(BIN)/ruff format --check -q
	@$(BIN)/mypy --no-error-summary
	@said=$$($(BIN)/lint-imports --no-logo) || { echo "$$said" >&2; exit 1; }
	@echo 'lint: style, types and import rules hold'

bench: .venv/.installed-dev compiled ## Run one benchmark: make bench NAME=invoke
	@test -f 'benchmarks/$(NAME).py' || { echo 'bench: say which: make bench NAME=<$(shell cd benchmarks 2>/dev/null && grep -l __main__ *.py 2>/dev/null | sed 's/\.py$$//' | paste -sd'|')>' >&2; exit 2; }
	@$(PY) -m benchmarks.$(NAME) $(ARGS)

install: .venv/.installed-demo compiled ## Install everything that running needs; then .venv/bin/sovereign up

compiled: ## Write our own bytecode, so that every process of the cluster starts from it
	@$(PY) -m compileall -q -j 0 $(ROOMS)

clean: ## Remove what was installed and every cache; state under .sovereign/ stays
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(UV):
	@python=''
	for p in "$${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
	  if "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then python=$$p; break; fi
	done
	if [ -z "$$python" ]; then
	  echo 'make: no Python 3.11, 3.12 or 3.13 was found. Install one (apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3 …' >&2; exit 1
	fi
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
	  echo "make: $$python can't make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1
	fi
	echo 'Installing uv $(UV_VERSION) into .tools/ …' >&2
	rm -rf '$(@D)/..'
	"$$python" -m venv '$(@D)/..'
	'$(@D)/python' -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)'

.venv/.installed-demo: pyproject.toml uv.lock $(UV)
	@echo 'Installing the locked environment into .venv/ …' >&2
	@$(UV) sync --quiet --locked --inexact --compile-bytecode --no-default-groups --group demo --python $(dir $(UV))python
	@touch $@

.venv/.installed-dev: pyproject.toml uv.lock $(UV)
	@echo 'Installing the locked environment, with what tests need, into .venv/ …' >&2
	@$(UV) sync --quiet --locked --compile-bytecode --python $(dir $(UV))python
	@touch $@ .venv/.installed-demo

# The reference policy engine that our decisions are compared with; it can't be held by uv.lock.
.tools/.installed-oracle: .venv/.installed-dev $(wildcard tests/servers/install_opa.sh)
	@if [ -f tests/servers/install_opa.sh ]; then bash tests/servers/install_opa.sh; fi
	@touch $@
