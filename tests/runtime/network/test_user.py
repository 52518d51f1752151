"""Networks of users, but for their links: those are tests/engine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooring.kit.errors import NotFound
from mooring.kit.models.network import NetworkRecord
from mooring.runtime.network import links, user
from mooring.runtime.network.user import UserNetworks

NET = NetworkRecord(id="c0ffee" * 10 + "beef", name="net", driver="macvlan", interface="dm-0")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The ids of the networks that have a link."""
    there: set[str] = set()

    def ensure(record: NetworkRecord, instance: str) -> bool:
        there.add(record.id)
        return True

    def remove(record: NetworkRecord, instance: str) -> None:
        there.discard(record.id)

    monkeypatch.setattr(links, "ensure", ensure)
    monkeypatch.setattr(links, "remove", remove)
    return there


def worker(directory: Path) -> UserNetworks:
    """What a worker that has just started knows."""
    networks = UserNetworks(directory, "mooring-test", lambda _: [])
    networks.load()
    return networks


async def test_what_is_asked_for_again_after_it_was_removed_is_not_made(
    made: set[str], tmp_path: Path
) -> None:
    """Its bridge was there for ever, and made again by each worker."""
    networks = worker(tmp_path)
    await networks.ensure(NET)
    assert made == {NET.id}
    await networks.remove(NET)
    for late in (networks, worker(tmp_path)):
        with pytest.raises(NotFound, match="network net not found"):
            await late.ensure(NET)
    assert not made
    assert [*worker(tmp_path)] == []


async def test_what_was_removed_long_ago_is_forgotten(made: set[str], tmp_path: Path) -> None:
    networks = worker(tmp_path)
    await networks.remove(NET)
    (note,) = (tmp_path / "networks").iterdir()
    os.utime(note, (0, 0))
    other = NET.model_copy(update={"id": "f00d" * 16})
    await networks.remove(other)
    assert [path.name for path in (tmp_path / "networks").iterdir()] == [f"{other.id}.removed"]
    assert user.REMEMBER_REMOVED >= 60
