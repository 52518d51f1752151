"""What stdin goes through is with the process manager before the first byte is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.kit.errors import NotSupported
from mooring.shim import held, keeping
from mooring.shim.commands import _stage
from mooring.shim.keeping import Keeping
from mooring.shim.runs import Container, Run
from mooring.shim.vestibule import Key

from .fakes import CONTAINER, Manager


class Shim:
    """Answers `stage`."""

    def __init__(self, *, old: bool = False) -> None:
        self.asked: list[str] = []
        self.old = old

    async def request_with(self, op: str, **fields: Any) -> dict[str, Any]:
        self.asked.append(op)
        if self.old:
            raise NotSupported("the shim knows no operation 'stage'")
        reading, writing = os.pipe()
        return {"names": ["stage_out", "stage_in"], "descriptors": [reading, writing]}


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def run(manager: Manager, tmp_path: Path) -> Iterator[Run]:
    keeping = Keeping(manager)
    made = Run(Container(CONTAINER), 1, str(tmp_path), keeping)
    made.pidfd = os.pidfd_open(os.getpid())
    made.held = {"stdin": os.open("/dev/null", os.O_WRONLY)}
    yield made
    for descriptor in (made.pidfd, *made.held.values()):
        os.close(descriptor)
    keeping.close()
    manager.close()


async def test_it_is_asked_for_once_and_found_by_the_next_agent(run: Run, manager: Manager) -> None:
    """An agent that died with the shim had left it in no queue but its own: stdin came twice."""
    shim = Shim()
    for _ in range(2):
        await _stage(run, "", shim)  # type: ignore[arg-type]
    assert shim.asked == ["stage"]
    assert {"stdin", "stage_in", "stage_out"} <= manager.found(Key(CONTAINER, 1)).keys()


async def test_a_shim_of_an_older_version_hands_it_over_with_the_bytes(run: Run) -> None:
    shim = Shim(old=True)
    await _stage(run, "", shim)  # type: ignore[arg-type]
    assert "stage_in" not in run.held


def _lane() -> tuple[dict[str, Any], list[int]]:
    return {"names": ["stdout_outlet", "stdout_inlet"]}, [*os.pipe()]


async def test_a_lane_is_used_once_the_next_agent_has_it(run: Run, manager: Manager) -> None:
    assert held.add_lane(run, "", *_lane())
    assert {"stdout_outlet", "stdout_inlet"} <= manager.found(Key(CONTAINER, 1)).keys()


async def test_a_lane_that_could_not_be_kept_is_not_used(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "NAMES", 0)
    assert not held.add_lane(run, "", *_lane())
    # Nor that of an exec which nobody knows.
    assert not held.add_lane(run, "e", *_lane())
