# What you can do here: `make help`.

.DEFAULT_GOAL := help
.PHONY: help install run web worker inbox test check lock

# The first of these that is there; the service needs 3.11 or newer.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	command -v $(name) >/dev/null 2>&1 && $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))
# By -m and not by its script: a script's first line does not survive every path.
RUN := .venv/bin/python -m
WORKERS ?= 4
ARGS ?=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

install: .venv/.installed  ## make .venv with what the service needs

run: .venv/.installed  ## everything in one process, with a disposable inbox: no account, no other server
	@exec $(RUN) flask up $(ARGS)

web: .venv/.installed  ## the web half of the pair, on RabbitMQ
	@exec .venv/bin/python app.py

worker: .venv/.installed  ## the worker half of the pair
	@exec $(RUN) celery -A mailasync worker --loglevel=INFO $(ARGS)

inbox: .venv/.installed  ## the disposable inbox alone, for the pair without an account
	@exec $(RUN) flask inbox

test: .venv/.installed-dev  ## all tests; finds, installs or unpacks RabbitMQ and PostgreSQL first
	@$(RUN) tests.services.provide
	@$(RUN) pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: .venv/.installed-dev  ## lint and types
	@$(RUN) ruff check .
	@$(RUN) mypy

lock: .venv/.installed-dev  ## pin requirements.txt and requirements-dev.txt anew from pyproject.toml
	@.venv/bin/python -m pip install --quiet uv
	@$(RUN) uv pip compile pyproject.toml --universal --generate-hashes --no-header --upgrade --quiet -o requirements.txt
	@$(RUN) uv pip compile --group dev -c requirements.txt --universal --generate-hashes --no-header --upgrade --quiet -o requirements-dev.txt

.venv/.installed: requirements.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "mailasync needs Python 3.11 or newer; install one (apt install python3, brew install python), or set PYTHON=/path/to/it" >&2; exit 1; fi
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module; apt install python3-venv" >&2; exit 1; }
	@echo "installing into .venv (once)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch .venv/.installed

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch .venv/.installed-dev
