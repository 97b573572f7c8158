# The commands of mmchar; `make` alone lists them. Nothing is installed outside of .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHMARKS = $(wildcard benchmarks/*.py)
# Test files that run at a time. Shared out by file, not by group: pytest-xdist 3.8 ignores groups under pytest 9.2.
TEST_JOBS ?= 2

# Notebooks run on the kernel inside .venv, even where the user has one of the same name.
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help study rendered zoo-page site test bench lab clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

study: $(READY)  ## run every notebook in batch; write results/, its figures and the scorecard (STUDY_ARGS='--only 02,05')
	$(BIN)/mmchar study $(STUDY_ARGS)

rendered: $(READY)  ## run the study and refresh notebooks/rendered/ and figures/ (STUDY_ARGS)
	$(BIN)/mmchar study --render notebooks/rendered $(STUDY_ARGS)

zoo-page: $(READY)  ## count the whole zoo and write docs/zoo.md
	$(BIN)/mmchar zoo --out docs/zoo.md

site: $(READY)  ## make the static site in site/, to be opened offline; the first time counts the zoo (SITE_ARGS)
	$(BIN)/mmchar site $(SITE_ARGS)

test: $(READY)  ## lint, format, types, imports, tests and small notebooks (PYTEST_ARGS='-m "not slow"', TEST_JOBS=2)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

bench: $(READY)  ## print the speed ratios (BENCH_ARGS)
	@for script in $(BENCHMARKS); do $(BIN)/python $$script $(BENCH_ARGS) || exit 1; done

lab: $(READY)  ## open the notebooks in JupyterLab, reachable from this machine only (LAB_ARGS='--port 8890')
	env -u MPLBACKEND $(BIN)/jupyter lab --ip=127.0.0.1 --LabApp.default_url=/lab/tree/notebooks --LabApp.news_url=None \
	  $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

clean:  ## remove .venv and caches; results/ is kept
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Made once, and again when the pins or the package's own needs change. The mark is written last: a set-up that was
# interrupted is completed by the next call. An environment that cannot run pip is made anew.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mmchar needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1): try make PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --requirement requirements.txt
	$(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib mmchar >/dev/null || true  # some are for a newer Python
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
