"""A launcher for the tests of the shim; it needs no root, but some of its tests do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import Container, Launcher, Run


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """A launcher whose shims run processes of the host."""
    started = Launcher()
    yield started
    started.close()


@pytest.fixture
def run(launcher: Launcher, tmp_path: Path) -> Iterator[Run]:
    """Start containers that are ended with the test."""
    containers: list[Container] = []

    def start(*args: str, **fields: Any) -> Container:
        name = str(len(containers))
        containers.append(Container(launcher, tmp_path / name, list(args), **fields))
        return containers[-1]

    yield start
    for container in containers:
        container.__exit__()


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """A directory for fault points; a launcher of its own has to be started with it."""
    directory = tmp_path / "faults"
    directory.mkdir()
    return directory
