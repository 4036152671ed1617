# make demo   a first look: kanna alone, without developers' tools, then the main job on the small model shipped here
# make test   what CI runs: lint, floors, types, unit tests, then the tests that need ../shared when it is there

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed: kanna with what it needs; that and the tools of developers.
FOR_USERS := $(VENV)/.user
FOR_DEVELOPERS := $(VENV)/.dev

.PHONY: demo test lint unit integration minutes clean

demo: $(FOR_USERS)
	@echo "making the model that is shipped here smaller in eleven ways: about half a minute"
	$(BIN)/kanna demo --out demo-out --force
	@echo
	@echo "As a page:      $(BIN)/kanna report demo-out --out demo.html"
	@echo "On your path:   . $(BIN)/activate    (or write $(BIN)/kanna for kanna)"
	@echo "To go on:       $(BIN)/kanna demo --files walk    writes what the README's examples begin with"

test: lint unit integration

lint: $(FOR_DEVELOPERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: $(FOR_DEVELOPERS)
	$(BIN)/pytest tests/unit -n 2 -m "not minutes"

minutes: $(FOR_DEVELOPERS)
	$(BIN)/pytest tests/unit -m minutes

integration: $(FOR_DEVELOPERS)
	@if [ -d ../shared/zoo ]; then $(BIN)/pytest tests/integration; \
	else echo "../shared is not here: the integration tests are skipped"; fi

$(FOR_USERS): pyproject.toml constraints.txt
	@echo "installing kanna into $(VENV): some minutes, by your network; most of it is torch"
	@began=$$(date +%s); test -d $(VENV) || $(PYTHON) -m venv $(VENV); \
	$(BIN)/pip install --quiet --constraint constraints.txt torch && \
	$(BIN)/pip install --quiet --constraint constraints.txt --editable . && \
	echo "installed in $$(( $$(date +%s) - began )) seconds: $$(du -sh $(VENV) | cut -f1)"
	@touch $@

$(FOR_DEVELOPERS): $(FOR_USERS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo-out demo.html
