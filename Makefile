PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE  # without byte code each process compiles all modules anew

.PHONY: help demo test test-units test-commands test-sweep bench reproduce docs lint release-check setup setup-test constraints clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup  ## simulate, train two systems, evaluate, compare, open the report (5 to 8 minutes on 2 cores)
	$(BIN)/python tools/demo.py

test: setup-test  ## set-up, then lint and all tests but the sweeps (about nine minutes on 2 cores)
	@$(MAKE) --no-print-directory -j 2 lint test-commands

test-units:
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not sweep" tests/unit tests/laws

test-commands: test-units
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not sweep" \
		tests/e2e tests/web tests/docs tests/experiments tests/gpu tests/parity tests/realdata

test-sweep: setup-test  ## long sweeps over samples, and over parts that are tested elsewhere (about three minutes)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m sweep tests/unit tests/e2e tests/docs tests/gpu tests/parity

bench: setup-test  ## side-by-side speed and memory (about an hour); prints one table, writes results/bench.json
	@$(PYTHON) tools/setup_venv.py dev parity bench
	$(BIN)/python benchmarks/run.py

reproduce: setup  ## the study's table, ours and the ablation at full size (days on a laptop; resumes if started again)
	$(BIN)/python -m experiments reproduce
	$(BIN)/python -m experiments ablation --variant full

docs: setup  ## the documentation, every notebook executed, no network; open docs/_build/html/index.html
	@$(PYTHON) tools/setup_venv.py docs
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs docs/_build/html

lint: setup-test  ## style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

release-check: setup-test  ## wheel and sdist in clean environments, without and with an extra, with the lowest versions
	$(BIN)/python tools/release_check.py

setup:  ## .venv with darklens
	@$(PYTHON) tools/setup_venv.py

setup-test:  ## .venv with all that tests and lint need
	@$(PYTHON) tools/setup_venv.py dev parity docs

constraints: setup-test  ## rewrite constraints.txt from the installed versions
	@head -n 1 constraints.txt > constraints.new
	@$(BIN)/pip freeze --exclude-editable | grep -viE '^torch==' >> constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove the demo's results; the virtual environment stays
	rm -rf demo
