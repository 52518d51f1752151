# Two commands set everything up on a fresh Debian 12 machine, as root: `make demo` and `make test`.

VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-systemd lint unit bench clean

demo: $(VENV)/.installed
	$(PY) demo/demo.py

# Lint, types and all tests, also those that run real containers and kill the engine.
test: lint
	$(PY) -m pytest

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The engine as units of a real systemd, in a host that systemd-nspawn boots (built once, 2 minutes).
test-systemd: $(VENV)/.installed
	tools/install-packages systemd-container debootstrap dbus libsystemd-dev pkg-config gcc python3-dev
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,nats,systemd]'
	$(PY) -m pytest -m systemd tests/systemd

# What needs no root and no engine, for a quick look while working.
unit: $(VENV)/.installed
	$(PY) -m pytest -m "not kernel and not fault and not systemd"

# The figures, side by side with Debian's dockerd in one run; some of them: make bench ARGS="--quick --only ports,names".
bench: $(VENV)/.installed
	tools/install-packages docker.io hey curl
	PYTHONPATH=demo $(PY) -m benchmarks $(ARGS)

$(VENV)/.installed: pyproject.toml tools/install-packages
	tools/install-packages
	test -x $(VENV)/bin/python || /usr/bin/python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,nats]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
