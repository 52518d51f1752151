"""One engine for all tests that do not kill it."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator

import pytest

from .harness import Engine, engine

_TAIL = 8000
"""Characters of each log of an engine that a failed test shows."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what the services of its engines said."""
    report = yield
    if report.failed:
        values = getattr(item, "funcargs", {}).values()
        for found in {id(value): value for value in values if isinstance(value, Engine)}.values():
            for path in sorted(found.run.glob("*.log")):
                report.sections.append((str(path), path.read_text()[-_TAIL:]))
    return report


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
