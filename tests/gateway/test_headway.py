"""A client that reads a head, and then past its own buffer, loses nothing."""

from __future__ import annotations

import asyncio
import socket

from mooring.gateway.http.headway import head_was_read


async def test_the_wait_ends_when_the_peer_has_read_everything() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.send(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
        waiting = asyncio.create_task(head_was_read(ours))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        assert peer.recv(8192).endswith(b"\r\n\r\n")
        await waiting


async def test_a_peer_that_has_read_is_not_waited_for() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.send(b"head")
        peer.recv(8192)
        await asyncio.wait_for(head_was_read(ours), 10)


async def test_a_peer_that_never_reads_is_waited_for_a_moment_only() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.send(b"head")
        await asyncio.wait_for(head_was_read(ours), 10)
        assert peer.recv(8192) == b"head"


async def test_a_peer_that_is_gone_is_not_waited_for() -> None:
    ours, peer = socket.socketpair()
    with ours:
        ours.send(b"head")
        peer.close()
        await asyncio.wait_for(head_was_read(ours), 10)
