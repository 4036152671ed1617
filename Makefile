# make demo   a first look: environment, then the main job on the small model shipped here
# make test   what CI runs: lint, floors, types, unit tests, then the tests that need ../shared when it is there

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint unit integration minutes clean

demo: $(STAMP)
	$(BIN)/kanna demo --out demo-out --force

test: lint unit integration

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest tests/unit -n 2 -m "not minutes"

minutes: $(STAMP)
	$(BIN)/pytest tests/unit -m minutes

integration: $(STAMP)
	@if [ -d ../shared/zoo ]; then $(BIN)/pytest tests/integration; \
	else echo "../shared is not here: the integration tests are skipped"; fi

$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out
