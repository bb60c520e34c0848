# Two commands do everything: `make run` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# dvc.yaml calls `dermtune` by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing phones home; DVC's switch is in .dvc/config, those of other packages in src/dermtune/__init__.py.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
# uv trusts whom this machine trusts, as pip does: a hospital's proxy has a certificate of its own.
export UV_SYSTEM_CERTS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup run test coverage test-slow check flow server bench lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv from requirements.lock, every package checked by its hash

run: $(READY) ## images in, checked and exported model out: run what changed, then show where things are
	@dermtune check
	dvc repro
	@dermtune summary

# A thread each: as many test processes as cores run at once, and more threads would wait for one another.
test: export OMP_NUM_THREADS := 1
test: $(READY) ## run the tests; ARGS are pytest's, such as ARGS="-k splits"
	python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

coverage: $(READY) ## the same, and which lines they reach, which takes a third longer
	$(MAKE) test ARGS="--cov --cov-report=term $(ARGS)"

check: $(READY) ## formatter, linter, type checker and import rules
	ruff format --check .
	ruff check .
	mypy
	lint-imports

flow: $(READY) ## the same as run, as a Prefect flow; PREFECT_API_URL names a running server
	python -m pipelines.train

server: $(READY) ## a Prefect server with its pages and a worker, on this machine, until Ctrl-C
	python -m pipelines.server

test-slow: $(READY) ## the tests that take minutes: a service left alone for some nights, a benchmark, real images
	python -m pytest -m slow --timeout 1200 $(ARGS)

bench: ## list the benchmarks; each prints the ratios that it measures
	@ls benchmarks/*.py | grep -v side_by_side | sed 's|^|  $(BIN)/python |' || true

lock: $(READY) ## write requirements.lock anew from pyproject.toml
	uv pip compile pyproject.toml --quiet --extra train --extra serve --extra heic --extra dicom --extra parquet --extra ray --extra s3 --extra isic --extra study --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" -o requirements.lock
	uv pip compile benchmarks/fastai.in --quiet -c requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" -o benchmarks/fastai.txt

clean: ## remove what make and the tools made here; data/ and DVC's cache stay
	rm -rf $(VENV) .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find src pipelines tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# uv comes out of the lock as well, so that pip checks the one package that it installs.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: dermtune needs Python 3.11 or later; name one, such as: make PYTHON=python3.12" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	awk '/^[^ #]/ {wanted = /^uv==/} wanted' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
