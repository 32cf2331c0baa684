# make run                     train LeNet with the tutorial's defaults
# make run ARGS="--n-epochs 2" the same with arguments
# make test                    run the tests
# make bench                   time the networks beside PyTorch and JAX
# make bench ARGS="lenet-step" the same for a case alone
# make docs                    build the documentation, build/docs/index.html

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PACKAGE := $(VENV)/.installed
TESTS := $(VENV)/.installed-test
BENCH := $(VENV)/.installed-bench
DOCS := $(VENV)/.installed-docs

.PHONY: run test bench docs clean

run: $(PACKAGE)
	@$(BIN)/python -m deeplearning_tutorial.convolutional_mlp $(ARGS)

test: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

bench: $(BENCH)
	@$(BIN)/python -m benchmarks.run $(ARGS)

docs: $(DOCS)
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Each stamp is written only after its installation succeeded, so a broken one is taken up again.
$(PACKAGE): setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[plot]"
	@touch $@

$(TESTS): $(PACKAGE)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(BENCH): $(PACKAGE)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	@touch $@

$(DOCS): $(PACKAGE)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
