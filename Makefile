# make run                     train LeNet with the tutorial's defaults
# make run ARGS="--n-epochs 2" the same with arguments
# make test                    run the tests
# make bench                   time the networks beside PyTorch and JAX
# make bench ARGS="lenet-step" the same for a case alone

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PACKAGE := $(VENV)/.installed
TESTS := $(VENV)/.installed-test
BENCH := $(VENV)/.installed-bench

.PHONY: run test bench clean

run: $(PACKAGE)
	@$(BIN)/python -m deeplearning_tutorial.convolutional_mlp $(ARGS)

test: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(ARGS)

bench: $(BENCH)
	@$(BIN)/python -m benchmarks.run $(ARGS)

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

clean:
	rm -rf $(VENV) build dist *.egg-info
