# Each target makes .venv when it is missing. `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo repro test test-all lint format bench lock
.DEFAULT_GOAL := demo

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python %d.%d is too old: run make with PYTHON=python3.11 or a newer one" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $@

demo: .venv/installed ## the whole pipeline on made-up images, in demo/
	python -m scripts.demo

repro: .venv/installed ## the whole pipeline on the real dataset
	python -m braintumor.params params.yaml
	dvc repro

test: .venv/installed ## the default tests
	python -m pytest -m "not slow"

test-all: .venv/installed ## the slow ones too
	python -m pytest

lint: .venv/installed
	ruff check .
	ruff format --check .

format: .venv/installed
	ruff check --fix .
	ruff format .

bench: .venv/installed ## the table of times in the README
	python -m scripts.bench

lock: .venv/installed ## requirements.lock from pyproject.toml
	pip install --quiet uv
	uv pip compile --quiet --universal --all-extras --python-version 3.11 --no-header pyproject.toml -o requirements.lock
