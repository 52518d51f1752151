"""The default bridge with real links, namespaces and rules."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from mooring.runtime.network import factory
from mooring.runtime.network.bridge import Bridge, BridgeSettings

pytestmark = pytest.mark.kernel
NAME = f"mrt{secrets.token_hex(3)}"


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            factory.main(theirs)
        finally:
            os._exit(0)
    theirs.close()
    settings = BridgeSettings(NAME, NAME, "10.251.0.0/24", tmp_path, pool=2)
    made = Bridge(settings)
    await made.start(ours)
    yield made
    await made.close()
    await asyncio.to_thread(os.waitpid, pid, 0)
    await made.remove()


def inside(namespace: int, *command: str) -> str:
    """What a command prints in the namespace."""
    path = f"/proc/{os.getpid()}/fd/{namespace}"
    done = subprocess.run(
        ["nsenter", f"--net={path}", *command], capture_output=True, text=True, check=True
    )
    return done.stdout


def table() -> bytes:
    """Our nftables table with the handles of its rules."""
    command = ["nft", "-a", "list", "table", "inet", NAME]
    return subprocess.run(command, capture_output=True, check=True).stdout


def ip_link(*arguments: str) -> None:
    subprocess.run(["ip", "link", *arguments], check=True)


def links() -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name.startswith("mrv0afb00")}


async def gone(names: set[str]) -> None:
    """Until the kernel has deleted these links; it does so in the background."""
    async with asyncio.timeout(10):
        while links() & names:  # noqa: ASYNC110  the kernel tells nobody
            await asyncio.sleep(0.01)


def test_a_factory_ends_in_peace_whose_worker_was_killed() -> None:
    """Its traceback was in the engine's log after many a kill."""
    for asked in ([b"{}"], [b"{}", b"{}"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for packet in asked:
            ours.send(packet)
        ours.close()
        if (pid := os.fork()) == 0:
            status = 1
            try:
                factory.main(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        assert os.waitpid(pid, 0)[1] == 0


async def test_a_sandbox_has_an_address_a_route_and_reaches_the_gateway(bridge: Bridge) -> None:
    prepared, state = await bridge.attach("c0ffee.1")
    try:
        endpoint = state.endpoints["bridge"]
        shown = await asyncio.to_thread(inside, prepared.namespace, "ip", "-4", "addr")
        assert f"inet {endpoint.ip_address}/24" in shown
        routes = await asyncio.to_thread(inside, prepared.namespace, "ip", "route")
        assert "default via 10.251.0.1 dev eth0" in routes
        ping = ("busybox", "ping", "-c1", "-W2", "10.251.0.1")
        assert "1 packets received" in await asyncio.to_thread(inside, prepared.namespace, *ping)
    finally:
        os.close(prepared.namespace)


async def test_two_sandboxes_reach_each_other(bridge: Bridge) -> None:
    one, _ = await bridge.attach("c0ffee.1")
    two, state = await bridge.attach("decade.1")
    try:
        address = state.endpoints["bridge"].ip_address
        ping = ("busybox", "ping", "-c1", "-W2", address)
        assert "1 packets received" in await asyncio.to_thread(inside, one.namespace, *ping)
    finally:
        os.close(one.namespace)
        os.close(two.namespace)


async def test_nothing_is_left_in_the_kernel_once_the_last_descriptor_is_closed(
    bridge: Bridge,
) -> None:
    prepared, _ = await bridge.attach("c0ffee.1")
    name = factory.link_name(prepared.address.packed)
    assert name in links()
    os.close(prepared.namespace)
    await gone({name})


async def test_an_address_comes_back_after_detach_and_is_not_reused_at_once(
    bridge: Bridge,
) -> None:
    first, _ = await bridge.attach("c0ffee.1")
    os.close(first.namespace)
    bridge.detach("c0ffee.1")
    second, _ = await bridge.attach("c0ffee.2")
    os.close(second.namespace)
    assert second.address != first.address


async def test_an_address_whose_link_is_still_there_is_passed_over(bridge: Bridge) -> None:
    """As after a kill of the worker: the kernel deletes the sandboxes of its pool later."""
    there = IPv4Address("10.251.0.9")
    name = factory.link_name(there.packed)
    await asyncio.to_thread(ip_link, "add", name, "type", "bridge")
    try:
        given = [(await bridge.attach(f"c0ffee.{n}"))[0] for n in range(9)]
    finally:
        await asyncio.to_thread(ip_link, "del", name)
    addresses = [prepared.address for prepared in given]
    assert there not in addresses and there + 1 in addresses
    for prepared in given:
        os.close(prepared.namespace)


async def test_set_up_again_changes_nothing(bridge: Bridge, tmp_path: Path) -> None:
    before = table()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    again = Bridge(BridgeSettings(NAME, NAME, "", tmp_path, pool=0))
    await again.start(ours)
    theirs.close()
    assert table() == before
    assert again.subnet == "10.251.0.0/24"
    await again.close()
