# make demo   train three concepts, fuse them, draw them together (a few minutes, offline after installing)
# make ui     the web page, on this machine only
# make screenshots   pictures of every page into docs/ui/ (needs chromium; some minutes)
# make test   lint and run the tests
# PYTHON=python3.12 make …   uses another Python (3.11 or later)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt

.PHONY: demo ui screenshots test lint
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python -m tools.demo

ui: $(VENV)/.installed
	$(BIN)/python app.py

screenshots: $(VENV)/.installed-dev
	$(BIN)/python -m tools.screenshots

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check

# The stamps say that the pinned packages are installed: a second run starts at once.
$(VENV)/.installed: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: PYTHON=python3.12 make …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
