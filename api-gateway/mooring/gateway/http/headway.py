"""Nothing of a raw stream is sent before its client has read the head.

docker-py reads the head through a buffered file and what follows from the socket below it: bytes
that arrive together with the head are lost to it. dockerd needs longer to start an exec than its
clients to read a head, and so never shows that; here one exec in five lost its output.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios

_LONGEST = 0.1
"""Seconds; a client that does not read by then is not waiting for the head."""


async def head_was_read(sock: socket.socket) -> None:
    """Return once the peer of a unix socket has read all that was sent; of others, at once."""
    if sock.family != socket.AF_UNIX or not _unread(sock):
        return
    loop = asyncio.get_running_loop()
    # The kernel tells a writer of room whenever a message was read: an edge each time. The
    # socket itself, always writable, would wake the loop without end.
    with select.epoll() as edges:
        edges.register(sock.fileno(), select.EPOLLOUT | select.EPOLLET)
        edges.poll(0)
        read: asyncio.Future[None] = loop.create_future()

        def done() -> None:
            if not read.done():
                read.set_result(None)

        def look() -> None:
            edges.poll(0)
            if not _unread(sock):
                done()

        loop.add_reader(edges.fileno(), look)
        late = loop.call_later(_LONGEST, done)
        try:
            look()
            await read
        finally:
            late.cancel()
            loop.remove_reader(edges.fileno())


def _unread(sock: socket.socket) -> int:
    """How much of what was sent its peer has not read; in memory of the kernel, not in bytes."""
    held = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("i", held)[0])
