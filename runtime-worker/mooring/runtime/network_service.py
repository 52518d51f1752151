"""The worker's commands about networks, on the bus."""

from __future__ import annotations

import asyncio
import time

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Done, Request
from mooring.kit.models.network import (
    BridgeReady,
    HostConnect,
    HostDisconnect,
    HostNetwork,
    HostRename,
    HostSubnets,
    NetworkRecord,
)

from .network import links
from .rewiring import Rewiring
from .sandbox import HostNetworks


async def serve(bus: Bus, settings: Settings, networks: HostNetworks, rewiring: Rewiring) -> None:
    """Answer commands about networks; tell of the default bridge when it is ready."""

    def subject(verb: str) -> str:
        return subjects.runtime(settings.node_id, verb)

    async def ensure(request: HostNetwork) -> Done:
        await networks.ensure(request.record)
        return Done()

    async def remove(request: HostNetwork) -> Done:
        await networks.remove(request.record)
        return Done()

    async def subnets(_: Request) -> HostSubnets:
        return HostSubnets(subnets=await asyncio.to_thread(links.routes))

    async def announce(record: NetworkRecord, mtu: int) -> None:
        pool = record.ipam[0]
        fact = BridgeReady(
            node=settings.node_id,
            subnet=pool.subnet,
            gateway=pool.gateway,
            mtu=mtu,
            interface=record.interface,
            time_ns=time.time_ns(),
        )
        msg_id = f"{settings.node_id}.{fact.time_ns}.bridge"
        await bus.publish_durable(
            subjects.fact(settings.node_id, subjects.FACT_BRIDGE), fact, msg_id=msg_id
        )

    await bus.serve(subject(subjects.RUNTIME_NETWORK_ENSURE), HostNetwork, ensure)
    await bus.serve(subject(subjects.RUNTIME_NETWORK_REMOVE), HostNetwork, remove)
    await bus.serve(subject(subjects.RUNTIME_NETWORK_SUBNETS), Request, subnets)
    await bus.serve(subject(subjects.RUNTIME_NETWORK_CONNECT), HostConnect, rewiring.connect)
    await bus.serve(
        subject(subjects.RUNTIME_NETWORK_DISCONNECT), HostDisconnect, rewiring.disconnect
    )
    await bus.serve(subject(subjects.RUNTIME_NETWORK_RENAME), HostRename, rewiring.rename)
    await networks.tell(announce)
