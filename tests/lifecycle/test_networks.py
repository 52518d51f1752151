"""Networks of one name, several at a time, and claims of replicas that died."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from mooring.kit import subjects
from mooring.kit.errors import Conflict, NotFound
from mooring.kit.models.base import Done, Request
from mooring.kit.models.network import (
    Claimed,
    CreateNetwork,
    HostNetwork,
    HostSubnets,
    NetworkClaims,
    NetworkCreated,
    NetworkRequest,
    Progress,
)
from mooring.lifecycle.networks import CLAIMS, NetworkHandlers
from tests.fakes import FakeHost

from .conftest import Client, Replica


class NetworkHost:
    """The networks of a host: made and removed when they may be."""

    def __init__(self) -> None:
        self.may_make, self.may_remove = asyncio.Event(), asyncio.Event()
        self.made: asyncio.Queue[str] = asyncio.Queue()
        """What is being made."""
        self.removing = asyncio.Event()
        self.late, self.may_refuse = False, asyncio.Event()
        """What is asked for comes too late: it was removed before."""

    async def serve(self, host: FakeHost) -> None:
        """Answer for a host."""
        for verb, request_type, handler in (
            (subjects.RUNTIME_NETWORK_ENSURE, HostNetwork, self.ensure),
            (subjects.RUNTIME_NETWORK_REMOVE, HostNetwork, self.remove),
            (subjects.RUNTIME_NETWORK_SUBNETS, Request, self.subnets),
        ):
            subject = subjects.runtime(host.node, verb)
            await host.bus.serve(subject, request_type, handler)  # type: ignore[arg-type]

    async def ensure(self, request: HostNetwork) -> Done:
        """Make it."""
        self.made.put_nowait(request.record.id)
        if self.late:
            await self.may_refuse.wait()
            raise NotFound(f"network {request.record.name} not found")
        await self.may_make.wait()
        return Done()

    async def remove(self, request: HostNetwork) -> Done:
        """Remove it."""
        self.removing.set()
        await self.may_remove.wait()
        return Done()

    async def subnets(self, request: Request) -> HostSubnets:
        """None."""
        return HostSubnets()


def create(client: Client, request_id: str) -> asyncio.Task[NetworkCreated]:
    """Ask for a network `net`."""
    request = CreateNetwork(request_id=request_id, name="net", driver="bridge")
    asking = client.bus.request(subjects.NETWORK_CREATE, request, NetworkCreated)
    return asyncio.create_task(asking)


async def test_of_two_creates_that_waited_for_a_removal_the_second_waits_for_the_first(
    client: Client, host: FakeHost
) -> None:
    """That the name is taken would be no answer while nobody finds the network by it."""
    networks = NetworkHost()
    await networks.serve(host)
    networks.may_make.set()
    await create(client, "before")
    networks.may_make.clear()
    networks.made.get_nowait()
    removal = client.bus.request(subjects.NETWORK_REMOVE, NetworkRequest(network="net"), Done)
    removing = asyncio.create_task(removal)
    await networks.removing.wait()
    creating = [create(client, "one"), create(client, "other")]
    networks.may_remove.set()
    await removing
    await networks.made.get()
    done, _ = await asyncio.wait(creating, timeout=0.3)
    assert not done
    networks.may_make.set()
    answers = await asyncio.gather(*creating, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert [error.message for error in refused] == ["network with name net already exists"]


async def test_a_create_whose_replica_died_after_the_claim_is_made_when_it_is_asked_again(
    client: Client, host: FakeHost, lifecycle: Replica
) -> None:
    networks = NetworkHost()
    await networks.serve(host)
    networks.may_make.set()
    id_ = hashlib.sha256(b"network again").hexdigest()
    mine = Claimed(name="net", subnets=["172.30.0.0/16"], owner="dead", claimed_ns=1)
    await lifecycle.engine.network_claims.create(CLAIMS, NetworkClaims(claims={id_: mine}))
    assert (await create(client, "again")).network_id == id_


async def test_who_makes_a_network_too_late_does_not_take_back_what_another_has_made(
    client: Client, host: FakeHost, lifecycle: Replica
) -> None:
    """One asks in the place of a replica that died; the client has asked again as well."""
    networks = NetworkHost()
    await networks.serve(host)
    networks.late = True
    first = create(client, "same")
    id_ = await networks.made.get()
    networks.late = False
    row = lifecycle.engine.networks.get(id_)
    assert row is not None
    networks.may_make.set()
    handlers = NetworkHandlers(lifecycle.engine, "")
    assert (await handlers.finish_create(row)).record.progress is Progress.ACTIVE
    networks.may_refuse.set()
    with pytest.raises(NotFound):
        await first
    current = lifecycle.engine.networks.get(id_)
    assert current is not None and current.record.progress is Progress.ACTIVE
    claims = await lifecycle.engine.network_claims.fetch(CLAIMS)
    assert list(claims.record.claims) == [id_]
