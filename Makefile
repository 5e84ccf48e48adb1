# Every target does all the set-up it needs, in the project's own environment.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup quickstart test test-short test-long fuzz lint bench docs clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "subnet-search needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv (PyTorch is a large download: a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $(READY)

# The main job: 20 trials over a network that is never trained, then the best one's subnetwork.
quickstart: setup
	@$(BIN)/subnet-search study run studies/quickstart.yaml
	@$(BIN)/subnet-search study extract quickstart --best --resume --out runs/quickstart

# As many tests at a time as there are processors, each on one thread. The processes that they start keep what they compile.
TEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist worksteal

test: setup
	@$(TEST) -m "not long"

test-short: setup
	@$(TEST) -m "not long and not slow"

test-long: setup
	@$(TEST)

# Mutated inputs, of which the tests try a few: each is taken as it is meant, or refused in one line.
fuzz: setup
	@$(BIN)/python tests/fuzz.py --inputs 10000

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@$(BIN)/python benchmarks/run.py

# The page of methods is made from the code (a test fails when it is stale); then the site, where a warning is an error.
docs: export NO_MKDOCS_2_WARNING := 1
docs: export DISABLE_MKDOCS_2_WARNING := true
docs: setup
	@$(BIN)/subnet-search methods --markdown > docs/methods.md
	@$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
