"""One engine for all tests that do not kill it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .harness import Engine, engine


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Engine]:
    if shutil.which("docker") is None:
        pytest.skip("no docker CLI on PATH")
    with engine() as made:
        yield made


@pytest.fixture
def docker(shared_engine: Engine) -> Iterator[Engine]:
    """The shared engine; whatever containers a test made are gone after it, without a trace."""
    yield shared_engine
    shared_engine.remove_all()
