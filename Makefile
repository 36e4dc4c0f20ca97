# `make demo` and `make test` do all their own set-up. Needs Python 3.11 or later, git and make.
# Without make (Windows):  python -m venv .venv
#                          .venv\Scripts\pip install -c constraints.txt torch -e .[dev]

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
PICTURE ?= examples/picture.png
INSTRUCTION ?= make it night

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
CORE := .venv/.installed
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long bench tables format clean

help:
	@echo "make demo       edit a picture in examples/ with the embedded model"
	@echo "make test       lint, types, import rules and the test suite"
	@echo "make test-long  the tests that take minutes"
	@echo "make bench      time our runtime against diffusers' pipeline"
	@echo "make tables     put the tables of the last evaluations into README.md and docs/"
	@echo "make format     let ruff fix what it can"
	@echo "make venv       set up .venv for development"
	@echo "make clean      remove everything that make and the tools made, except .cache/"

venv: $(DEV)

# torch goes first and by its exact version: pip then takes the CPU build where there is one, and no later
# requirement can pull in another.
$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Wordbrush needs Python 3.11 or later")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { echo "setting up .venv with $(PYTHON)"; \
		$(PYTHON) -m venv --clear .venv || { rm -rf .venv; echo "Python's venv is missing (Debian: python3-venv)"; exit 1; }; }
	@echo "installing Wordbrush (the first time takes some minutes)"
	@$(PIP) $$(grep '^torch==' constraints.txt)
	@$(PIP) --editable .
	@touch $@

$(DEV): $(CORE)
	@echo "installing the tools for development"
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(CORE)
	@mkdir -p out
	@echo "wordbrush edit $(PICTURE) \"$(INSTRUCTION)\" --seed 0 -o out/demo.png --force"
	@$(BIN)/wordbrush edit $(PICTURE) "$(INSTRUCTION)" --seed 0 -o out/demo.png --force
	@$(BIN)/python examples/before_after.py $(PICTURE) out/demo.png out/demo-before-after.png

test: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile  # a process a core, so a thread in each is enough

test-long: $(DEV)
	$(BIN)/pytest -q -m long

bench: $(DEV)
	$(BIN)/python benchmarks/speed.py

tables: $(CORE)
	$(BIN)/python docs/tables.py

format: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv out dist build .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
