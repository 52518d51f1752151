"""A launcher for the tests of the shim; it needs no root, but some of its tests do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Launcher


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """A launcher whose shims run processes of the host."""
    started = Launcher()
    yield started
    started.close()


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """A directory for fault points; a launcher of its own has to be started with it."""
    directory = tmp_path / "faults"
    directory.mkdir()
    return directory
