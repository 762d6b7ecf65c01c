# `make up` and `make test` are the only set-up: whatever a target needs, it installs first.

SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.tools/bin:$(PATH)

ENVIRONMENT ?= dev
PYTEST_ARGS ?=
# Tests wait as much as they compute, for servers and for Pulumi.
WORKERS ?= $(shell echo $$(( $$(nproc) * 3 / 2 )))

.DEFAULT_GOAL := help
.PHONY: help up down test lint bench tools commands lock

help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1	\2/p' Makefile

up: .venv/.up-to-date commands  ## serve the example: two versions of a model behind one URL on this machine
	@python examples/tumour/build.py
	@lepton up $(ENVIRONMENT)

down: .venv/.up-to-date commands  ## destroy what `make up` made
	@lepton down $(ENVIRONMENT)

test: lint tools  ## lint, and run every test (PYTEST_ARGS="tests/unit -k name" for some)
	@tools/debian-packages.sh dockerd=docker.io initdb=postgresql mariadbd=mariadb-server chromium containerd runc \
		host-local=containernetworking-plugins
	pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: .venv/.up-to-date  ## check style, format and types
	ruff check
	ruff format --check
	pyright

bench: .venv/.up-to-date commands  ## measure router, split, weight changes, rollbacks, packaging and catalogue (into benchmarks/results)
	@tools/debian-packages.sh haproxy nginx wrk h2load=nghttp2-client
	python -m benchmarks

tools: .venv/.up-to-date  ## build the third-party commands that are not on PATH, once a machine
	@python tools/install.py

# Without what only tests run.
commands: .venv/.up-to-date
	@python tools/install.py pulumi prometheus

lock: .venv/.up-to-date  ## write requirements.lock from pyproject.toml (LOCK_ARGS=--upgrade for newer pins)
	@tools/lock.sh $(LOCK_ARGS)

.venv/.up-to-date: requirements.lock pyproject.toml tools/environment.sh
	@tools/environment.sh
