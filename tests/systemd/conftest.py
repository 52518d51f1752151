"""One host for the module's tests, with the engine installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

import image

from .host import MACHINE, Host, booted

NEEDED = ("systemd-nspawn", "debootstrap", "docker", "dbus-daemon")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that boot a host need root and time: `make test-systemd`."""
    for item in items:
        if isinstance(item, pytest.Function) and "bare" in item.fixturenames:
            item.add_marker(pytest.mark.systemd)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A booted host without an engine."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {', '.join(missing)}")
    with booted(MACHINE, tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="module")
def host(bare: Host) -> Iterator[Host]:
    """A host with the engine installed and an image `bb` in it."""
    bare.install()
    bare.run("docker", "load", data=image.busybox_archive("bb:latest"))
    yield bare
