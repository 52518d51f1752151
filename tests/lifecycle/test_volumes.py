"""Volumes: made once, claimed by containers being created, removed when nobody has them."""

from __future__ import annotations

import time

import pytest

from mooring.kit import subjects
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotFound
from mooring.kit.models.base import Done
from mooring.kit.models.container import Pruned
from mooring.kit.models.volume import (
    CreateVolume,
    PruneVolumes,
    RemoveVolume,
    VolumeCreated,
    VolumeRecord,
    VolumeState,
)
from mooring.kit.store import key_for
from mooring.lifecycle.volumes import CLAIM_AGE
from tests.fakes import FakeHost

from .conftest import Client, Replica


async def create(client: Client, name: str, **fields: object) -> VolumeRecord:
    request = CreateVolume(name=name, **fields)  # type: ignore[arg-type]
    return (await client.bus.request(subjects.VOLUME_CREATE, request, VolumeCreated)).volume


async def remove(client: Client, name: str) -> Done:
    return await client.bus.request(subjects.VOLUME_REMOVE, RemoveVolume(name=name), Done)


async def prune(client: Client, **fields: object) -> Pruned:
    request = PruneVolumes(**fields)  # type: ignore[arg-type]
    return await client.bus.request(subjects.VOLUME_PRUNE, request, Pruned)


async def test_a_volume_is_made_once_and_its_options_stay(client: Client, host: FakeHost) -> None:
    first = await create(client, "data", labels={"a": "b"})
    again = await create(client, "data", labels={"c": "d"})
    assert (first.labels, again.labels) == ({"a": "b"}, {"a": "b"})
    assert host.volumes == {"data"}
    assert await client.actions(1, "data") == ["create"]


async def test_a_volume_that_its_host_refuses_is_not_there(client: Client, host: FakeHost) -> None:
    host.volume_refusal = InvalidParameter("no room")
    with pytest.raises(InvalidParameter, match="no room"):
        await create(client, "data")
    host.volume_refusal = None
    with pytest.raises(NotFound, match="get data: no such volume"):
        await remove(client, "data")


async def test_a_container_that_is_refused_claims_nothing_and_frees_its_name(
    client: Client, host: FakeHost
) -> None:
    await create(client, "data")
    host.volume_refusal = EngineError("failed to populate volume")
    with pytest.raises(EngineError, match="failed to populate"):
        await client.create("web", Binds=["data:/d", "/anonymous"])
    host.volume_refusal = None
    await remove(client, "data")
    assert host.volumes == set()
    await client.create("web")


async def test_a_claim_keeps_a_volume_until_it_is_too_old(
    client: Client, lifecycle: Replica
) -> None:
    """A container is being created by a replica that nobody hears of any more."""
    await create(client, "data")
    key, table = key_for("data"), lifecycle.engine.volumes
    now = time.time_ns()
    await table.change(key, lambda r: r.model_copy(update={"claims": {"c0ffee": now}}))
    with pytest.raises(Conflict, match=r"^remove data: volume is in use - \[c0ffee\]$"):
        await remove(client, "data")
    old = now - CLAIM_AGE
    await table.change(key, lambda r: r.model_copy(update={"claims": {"c0ffee": old}}))
    await remove(client, "data")


async def test_the_mounts_of_a_container_are_in_its_record(client: Client, host: FakeHost) -> None:
    first = await client.create("first", Binds=["data:/d", "/a"])
    second = await client.create("second", VolumesFrom=["first:ro"], Tmpfs={"/t": ""})
    mounts = {mount.destination: mount for mount in (await client.record(second)).mounts}
    assert [(m.name, m.rw, m.nocopy) for m in (mounts["/d"],)] == [("data", False, True)]
    assert mounts["/a"].name == (await client.record(first)).mounts[-1].name
    assert mounts["/t"].hidden
    with pytest.raises(Conflict, match="volume is in use"):
        await remove(client, "data")


async def test_anonymous_volumes_without_their_container_are_taken_back(
    client: Client, lifecycle: Replica, host: FakeHost
) -> None:
    """The replica died between making them and recording the container."""
    now = time.time_ns()
    lost = VolumeRecord(name="lost", node="node1", container="c0ffee", owner="gone", created_ns=now)
    await lifecycle.engine.volumes.create(key_for("lost"), lost)
    host.volumes.add("lost")
    await lifecycle.reconciler.look(ask_hosts=False)
    assert host.volumes == {"lost"}
    early = {"created_ns": now - 3 * CLAIM_AGE}
    await lifecycle.engine.volumes.change(key_for("lost"), lambda r: r.model_copy(update=early))
    await lifecycle.reconciler.look(ask_hosts=False)
    assert host.volumes == set()
    assert lifecycle.engine.volumes.get(key_for("lost")) is None


@pytest.mark.parametrize("state", [VolumeState.CREATING, VolumeState.REMOVING])
async def test_what_a_dead_replica_began_is_finished(
    client: Client, lifecycle: Replica, host: FakeHost, state: VolumeState
) -> None:
    left = VolumeRecord(name="left", node="node1", state=state, owner="gone", created_ns=1)
    await lifecycle.engine.volumes.create(key_for("left"), left)
    await lifecycle.reconciler.look(ask_hosts=False)
    row = lifecycle.engine.volumes.get(key_for("left"))
    if state is VolumeState.CREATING:
        assert row is not None and row.record.state is VolumeState.READY
        assert host.volumes == {"left"}
    else:
        assert row is None


async def test_a_prune_takes_anonymous_ones_or_all_that_nobody_has(client: Client) -> None:
    named, anonymous = await create(client, "named", labels={"keep": ""}), await create(client, "")
    await create(client, "used")
    await client.create("web", Binds=["used:/d"])
    pruned = await prune(client)
    assert (pruned.deleted, pruned.space_reclaimed) == ([anonymous.name], 1000)
    assert (await prune(client, all=True, labels_not=["keep"])).deleted == []
    assert (await prune(client, all=True)).deleted == [named.name]
