# Two commands set everything up on a fresh Debian 12 machine, as root: `make demo` and `make test`.

VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-systemd torture torture-systemd systemd-host lint unit bench clean

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
test-systemd: systemd-host
	$(PY) -m pytest -m systemd tests/systemd

systemd-host: $(VENV)/.installed
	tools/install-packages systemd-container debootstrap dbus libsystemd-dev pkg-config gcc python3-dev
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,nats,systemd]'

# Everything that clients do while random processes of the engine are killed (tests/torture): an engine
# of its own, then one in a systemd host. `make torture TORTURE_SECONDS=60` is a short one.
TORTURE_SECONDS := 600
torture: $(VENV)/.installed
	PYTHONPATH=demo $(PY) -m tests.torture --seconds $(TORTURE_SECONDS)

torture-systemd: systemd-host
	MOORING_SYSTEMD_TORTURE_SECONDS=$(TORTURE_SECONDS) $(PY) -m pytest -m systemd -rP tests/systemd/test_torture.py

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
