# What you can do here: `make help`.

.DEFAULT_GOAL := help
.PHONY: help install run web worker inbox flower example test test-fast check check-clients postman postman-examples docs lock soak mutations scale bench bench-scale bench-pages pictures contract fuzz

# The first of these that is there; the service needs 3.11 or newer.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	command -v $(name) >/dev/null 2>&1 && $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))
# By -m and not by its script: a script's first line does not survive every path.
RUN := .venv/bin/python -m
PIN := $(RUN) uv pip compile --universal --generate-hashes --no-header --upgrade --quiet
WORKERS ?= 6
ARGS ?=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

install: .venv/.installed  ## make .venv with what the service needs

run: .venv/.installed  ## everything in one process, with a disposable inbox: no account, no other server
	@exec $(RUN) flask up $(ARGS)

web: .venv/.installed  ## the web half of the pair, on RabbitMQ
	@exec .venv/bin/python app.py

worker: .venv/.installed  ## the worker half of the pair
	@exec $(RUN) celery -A mailasync worker --loglevel=INFO $(ARGS)

inbox: .venv/.installed  ## the disposable inbox alone, for the pair without an account
	@exec $(RUN) flask inbox

flower: .venv/.installed-flower  ## Flower, which shows workers and tasks, on http://127.0.0.1:5555
	@exec $(RUN) celery -A mailasync flower --conf=deploy/flowerconfig.py --address=127.0.0.1 --port=5555 $(ARGS)

example: $(if $(wildcard examples/$(NAME)/Procfile),.venv/.installed-examples)  ## the examples there are; make example NAME=cafe runs one, on RabbitMQ
	@if [ -z "$(NAME)" ]; then sed -n 's/^    \(make example NAME=\)/\1/p' examples/__init__.py; \
	elif [ ! -f "examples/$(NAME)/Procfile" ]; then echo "there is no example $(NAME); make example lists them" >&2; exit 1; \
	else PATH="$(CURDIR)/.venv/bin:$$PATH" exec $(RUN) honcho -e /dev/null -f "examples/$(NAME)/Procfile" start; fi

# The tests start some hundred processes of ours: not to keep what Python compiled costs a fifth of each start.
test: .venv/.installed-dev  ## all tests; finds, installs or unpacks RabbitMQ, PostgreSQL, Dovecot, Postfix and Chromium first
	@$(RUN) tests.services.provide
	@unset PYTHONDONTWRITEBYTECODE; $(RUN) pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-fast: .venv/.installed-dev  ## the tests within one process, without a server; about a minute
	@$(RUN) pytest -n auto --fast $(ARGS)

soak: .venv/.installed-dev  ## random faults over 10,000 mails; ARGS="--database postgresql --mails 1000 --faults 20", ARGS=--help
	@$(RUN) tests.services.provide
	@$(RUN) tests.faults.soak $(ARGS)

mutations: .venv/.installed-dev  ## removes one protection at a time, and expects the fault suite to turn red
	@$(RUN) tests.services.provide
	@$(RUN) tests.faults.mutations $(ARGS)

scale: .venv/.installed-dev  ## a backlog of 1,000,000 mails; ARGS="--rows 100000 --database postgresql"
	@$(RUN) tests.services.provide
	@$(RUN) tests.faults.scale $(ARGS)

bench: .venv/.installed-dev  ## beside what else one would take, in 20 minutes; ARGS="--only posts --rounds 1"; wants Node.js and npm
	@$(RUN) tests.services.provide
	@$(RUN) benchmarks.compare $(ARGS)

bench-scale: .venv/.installed-dev  ## what changes with size: queue, run, workers, connections; hours; ARGS="--only costs --seconds 10"
	@$(RUN) tests.services.provide
	@$(RUN) benchmarks.scale $(ARGS)

bench-pages: .venv/.installed-dev  ## how long the server takes for each page, with 100,000 messages stored
	@$(RUN) tests.services.provide
	@$(RUN) benchmarks.pages $(ARGS)

pictures: .venv/.installed-dev  ## pictures of the pages for docs/img; ARGS="--to DIRECTORY" for all pages, narrow and wide, light and dark
	@$(RUN) tests.services.provide
	@$(RUN) tests.tools.pictures $(ARGS)

contract: .venv/.installed-dev  ## thousands of requests made of /openapi.json, each answer held to it; ARGS="--examples 20 --seed 1"
	@$(RUN) tests.tools.contract $(ARGS)

fuzz: .venv/.installed-dev  ## 10,000 hostile requests, and each mail that comes of them compared; ARGS="--bodies 50000 --seed 7"
	@$(RUN) tests.tools.fuzz $(ARGS)

check: .venv/.installed-dev  ## lint, format and types, of Dockerfile and compose.yaml too
	@$(RUN) ruff check .
	@$(RUN) ruff format --check --quiet .
	@$(RUN) mypy
	@.venv/bin/hadolint Dockerfile
	@$(RUN) check_jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml

check-clients: .venv/.installed-dev  ## the Postman collection and the programs of docs/clients against flask up; wants curl, Node.js and npm
	@$(RUN) tests.tools.check_clients

postman: .venv/.installed  ## writes the Postman collection and its environments, docs/postman/, anew
	@$(RUN) tools.postman

postman-examples: .venv/.installed-dev  ## records the saved answers of the Postman collection anew; wants Node.js and npm
	@$(RUN) tests.tools.record_examples
	@$(RUN) tools.postman

docs: .venv/.installed .venv/.installed-docs  ## writes docs/settings.md anew, and the documentation as a site into site/
	@$(RUN) tools.settings_page
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build $(ARGS)
	@echo "the documentation is in site/index.html"

lock: .venv/.installed-dev  ## pin the requirements anew from pyproject.toml
	@.venv/bin/python -m pip install --quiet uv
	@$(PIN) pyproject.toml -o requirements.txt
	@$(PIN) --group flower -c requirements.txt -o requirements/flower.txt
	@$(PIN) --group examples -o requirements/examples.txt
	@$(PIN) --group thumbnail -o requirements/thumbnail.txt
	@$(PIN) --group docs -o requirements/docs.txt
	@$(PIN) --group dev -c requirements.txt $(foreach one,flower examples thumbnail docs,-c requirements/$(one).txt) -o requirements/dev.txt

.venv/.installed: requirements.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "mailasync needs Python 3.11 or newer; install one (apt install python3, brew install python), or set PYTHON=/path/to/it" >&2; exit 1; fi
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module; apt install python3-venv" >&2; exit 1; }
	@echo "installing into .venv (once)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch .venv/.installed

.venv/.installed-flower: .venv/.installed requirements/flower.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/flower.txt
	@touch .venv/.installed-flower

.venv/.installed-examples: .venv/.installed requirements/examples.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/examples.txt
	@touch .venv/.installed-examples

.venv/.installed-docs: .venv/.installed requirements/docs.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@touch .venv/.installed-docs

.venv/.installed-dev: .venv/.installed requirements/dev.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch .venv/.installed-dev
