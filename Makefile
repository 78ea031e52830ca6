# On a fresh machine: `make demo` and `make test`. Both work in .venv and touch nothing else.
PYTHON ?= python3
BIN := .venv/bin
# A fifth of the files of the packages is ever imported: they are compiled when they are, and kept.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test fuzz mutants test-slow test-phones test-integrations test-processors test-wheel test-oldest lint docs docs-serve clean

demo: .venv/demo
	$(BIN)/mirabelle run examples/fashion.yaml --resume

test: .venv/dev lint
	$(BIN)/python -m tests.processors --short
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m "not slow"

# What takes ten seconds and more each, and has a quicker relative in `make test`.
test-slow: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# Damaged files, networks, loaders and odd arguments, drawn anew each time, for an hour (FUZZ_SECONDS) that all tests share; a table of outcomes. `make test` has a short form of it.
fuzz: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --timeout 14400 --hypothesis-profile=long tests/fuzz

# Small changes of the code that the tests have to notice: 60 of them, ten minutes.
mutants: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants

# The other kinds of processor, emulated where that can be done: half an hour. `make test` does AVX2's in short.
test-processors: .venv/dev
	$(BIN)/python -m tests.processors

# LiteRT's and ExecuTorch's converters bring a gigabyte of packages along, which `make test` does without: their tests skip there.
test-phones: .venv/dev
	$(BIN)/python $(PIP) -c constraints.txt -e ".[dev,litert,executorch]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/runtimes/test_phone_runtimes.py tests/runtimes/test_tflite_sparse.py tests/test_exporter.py tests/verification/test_verify.py tests/runtimes/test_watch.py

# Lightning and Hugging Face's Trainer, 100 MB: their weights against those of our loop.
test-integrations: .venv/dev
	$(BIN)/python $(PIP) -c constraints.txt -e ".[dev,lightning,transformers]" tensorboard
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integrations

# The wheel, installed in a new environment and used outside the tree.
test-wheel: .venv/bin/python
	$(BIN)/python -m tests.wheel

# The lowest versions that pyproject.toml allows; Python 3.10 to 3.12 have them all. On Linux the index gives torch with CUDA, 6 GB installed.
test-oldest: .venv-oldest/done
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -W default tests/graph tests/channels/test_groups.py tests/pruning/test_prune.py tests/quantization/test_quantize.py tests/test_exporter.py

.venv-oldest/done: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	sed -n '/^dependencies/,/^]/s/^  "\(.*\)>=\(.*\)",/\1==\2/p' pyproject.toml > .venv-oldest/constraints.txt
	.venv-oldest/bin/python $(PIP) -c .venv-oldest/constraints.txt -e . pytest pytest-timeout pytest-xdist hypothesis
	touch $@

# The site, into build/site: every link is checked, and a warning is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python $(PIP) -c constraints.txt -e .
	touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python $(PIP) -c constraints.txt -e ".[dev]"
	touch $@ .venv/demo

.venv/docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python $(PIP) -c constraints.txt -e ".[openvino,docs]"
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist
