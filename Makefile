# make quickstart: from nothing to a ranked list and an exported model; make test: checks and tests.
# PIP_FLAGS passes through to pip, for example to choose PyTorch's index (see README).

PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-hosts check install clean

quickstart: install
	$(VENV)/bin/magic-nas run --config examples/quickstart.yaml --out runs/quickstart

# One process more than cores, for some tests wait; those that start clusters two at a time, and
# those that make hosts alone.
test: check
	$(VENV)/bin/pytest -m "not ray and not hosts" -n $$(($$(nproc) + 1)) --dist loadfile
	$(VENV)/bin/pytest -m ray -n 2 --dist loadfile
	$(VENV)/bin/pytest -m hosts

# What may fail, on hosts of network namespaces, into docs/reliability.md; needs root and some hours.
test-hosts: install
	$(VENV)/bin/python -m tests.hosts

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
