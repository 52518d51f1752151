"""A name server's socket: what is in it while a question is being answered."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from mooring.runtime.network.dns.server import PREFIX, NameServer
from mooring.runtime.network.loop import Loop
from mooring.runtime.network.manager import Manager


class Nobody(Manager):
    """Keeps nothing."""

    def __init__(self) -> None:
        pass

    def unstore(self, name: str) -> None:
        """See Manager."""


def test_a_question_is_there_for_the_next_process_until_it_is_answered(tmp_path: Path) -> None:
    server, seen = NameServer(Loop(), Nobody(), str(tmp_path)), list[bytes]()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(5)
    client.connect(datagrams.getsockname())
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def ask(
        holder: str, packet: bytes, reply: Callable[[bytes], None], *, tcp: bool = False
    ) -> None:
        seen.append(datagrams.recv(100, socket.MSG_PEEK))
        reply(b"answer to " + packet)

    server.ask = ask  # type: ignore[method-assign]
    own = os.dup(datagrams.fileno()), os.dup(listener.fileno())
    assert server.take(f"{PREFIX}web.1", list(own))
    client.send(b"one")
    client.send(b"two")
    server.loop.later(0.0, lambda: setattr(server.loop, "running", len(seen) < 2))
    server.loop.run()
    assert [client.recv(100), client.recv(100)] == [b"answer to one", b"answer to two"]
    assert seen == [b"one", b"two"]
    datagrams.setblocking(False)
    try:
        left = datagrams.recv(100)
    except BlockingIOError:
        left = b""
    assert left == b""
    server.leave("web.1")
    for sock in (datagrams, client, listener):
        sock.close()
