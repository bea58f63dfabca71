# One script per verb; CI runs the same ones. `make demo` and `make test` set up what they need.
PYTHON ?= python3
BIN := .venv/bin
DEMO_OUTPUT ?= demo-output

.PHONY: setup demo test check docs format bench wheel

setup:
	@PYTHON=$(PYTHON) scripts/setup

demo: setup
	$(BIN)/pipeline demo --output $(DEMO_OUTPUT)

test: setup
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python scripts/site/stage_pages.py build/site-pages
	$(BIN)/python -m sphinx -q -W --keep-going -c scripts/site build/site-pages site
	@echo "docs: site/index.html"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	@scripts/bench

wheel: setup
	$(BIN)/uv build --wheel --python $(BIN)/python --out-dir dist
