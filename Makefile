# make train [ARGS="task=mod_add init_scale=0.1"]   set up, then train
# make test                                         set up, then run the tests
# make cluster-test                                 sweeps on a SLURM of one node, started for it (as root, with Debian's slurm-wlm)
PYTHON ?= python3
ARGS ?= task=ising init_scale=10
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: train test cluster-test check format bench install clean

train: install
	$(BIN)/python train.py $(ARGS)

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

cluster-test: install
	$(BIN)/python -m pytest -s tests/cluster

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

install: $(STAMP)

# torch comes first and alone, with what its build for this machine needs; everything else is in the lock file and
# brings nothing along: nngeometry asks for torchvision, which it never imports and which breaks a CPU-only torch.
# pip would compile everything on one core; compileall takes them all, and a template that is no Python stops nobody.
$(STAMP): requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; choose one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements.lock
	$(BIN)/python -c 'import pathlib, site; pathlib.Path(site.getsitepackages()[0], "lit_grok.pth").write_text("$(CURDIR)\n")'
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
