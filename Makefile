# Each target makes .venv when it is missing. `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
# The stages' commands say `python`.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo repro test slow long lint format bench seeds tuning scaling study verify lock
.DEFAULT_GOAL := demo

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python %d.%d is too old: run make with PYTHON=python3.11 or a newer one" % sys.version_info[:2])'
	@echo 'installing into .venv: about 6 GB, some minutes, once'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $@

demo: .venv/installed ## the whole pipeline on made-up images, in demo/
	.venv/bin/python -m scripts.demo

repro: .venv/installed ## the whole pipeline on the real dataset
	.venv/bin/python -m braintumor.params
	.venv/bin/dvc repro

test: .venv/installed ## all tests but the slow and the long ones; with MARKS='not long' the slow ones too
	.venv/bin/python -m pytest $(if $(MARKS),-m '$(MARKS)')

slow: .venv/installed ## the tests that take longer
	.venv/bin/python -m pytest -m slow

long: .venv/installed ## the tests that would take CI over a quarter of an hour
	.venv/bin/python -m pytest -m long

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/installed ## the table of times in the README, and docs/benchmark.md
	.venv/bin/python -m scripts.bench
	.venv/bin/python -m scripts.bench_training

seeds: .venv/installed ## the recipe over folds and seeds: what metrics/seeds.csv lacks, about ten minutes a row
	.venv/bin/python -m scripts.seeds

tuning: .venv/installed ## settings compared on validation: what metrics/tuning.csv lacks, some six hours in all
	.venv/bin/python -m scripts.tuning

study: .venv/installed ## what study.yaml asks, hours in all; with STUDY=demo a small one on made-up images
	.venv/bin/python -m $(if $(filter demo,$(STUDY)),scripts.study_demo,braintumor.study)

verify: .venv/installed ## the committed run again, in a clean clone, with a verdict for each stage
	.venv/bin/python -m scripts.verify

scaling: .venv/installed ## the tables and the plot of docs/scaling.md
	.venv/bin/python -m scripts.scaling

lock: .venv/installed ## requirements.lock from pyproject.toml
	.venv/bin/pip install --quiet uv==0.13.9
	.venv/bin/uv pip compile --quiet --universal --all-extras --python-version 3.11 --no-header pyproject.toml -o requirements.lock
