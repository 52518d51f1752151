"""The conversations of a shim: `shim.sock` and the agent's socket, one JSON packet at a time."""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
)
from fcntl import ioctl

from .loop import READ, WRITE, Loop
from .packets import join, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Fields = dict[str, object]
    Request = Callable[["Connection", dict[str, object], bytes], None]

_FIONREAD = 0x541B
_QUEUE = 256
_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL
_CLOEXEC = MSG_CMSG_CLOEXEC
_SPACE = CMSG_SPACE(4)
_TYPE = SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC


class Connection:
    """One peer: packets in to a handler, packets out in order, none waited for."""

    __slots__ = ("_closed", "_given", "_handler", "_loop", "_queue", "_socket", "fd")

    def __init__(
        self, loop: Loop, sock: socket, handler: Request, closed: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._handler = handler
        self._closed = closed
        self._queue: list[bytes] = []
        self._given = -1
        self.fd = sock.fileno()
        loop.watch(self.fd, READ, self._ready)

    def send(self, head: Fields) -> None:
        """Send a packet, now or when the peer has read enough; one that never reads is left."""
        packet = join(head)
        if not self._queue:
            try:
                self._socket.send(packet, _FLAGS)
                return
            except BlockingIOError:
                self._loop.watch(self.fd, READ | WRITE, self._ready)
            except OSError:
                return  # Its end is seen by the loop.
        self._queue.append(packet)
        if len(self._queue) > _QUEUE:
            self.close()

    def answer(self, request: Fields, fields: Fields | None = None) -> None:
        """Answer a request, if it wants to be answered."""
        if (ident := request.get("id")) is not None:
            self.send({**(fields or {}), "id": ident, "ok": True})

    def refuse(self, request: Fields, error: Fields) -> None:
        """Answer a request with an error: `kind`, `message` and perhaps `exit_code`."""
        if (ident := request.get("id")) is not None:
            self.send({"id": ident, "error": error})

    def answer_with(self, request: Fields, fields: Fields, fds: list[int]) -> bool:
        """Answer a request and hand duplicates of descriptors over (at most 253), if that goes."""
        return self.send_with({"id": request.get("id"), "ok": True, **fields}, fds)

    def send_with(self, head: Fields, fds: list[int]) -> bool:
        """Send a packet and hand duplicates of descriptors over (at most 253), if that goes."""
        packet = join(head)
        try:
            send_with(self._socket, packet, fds)
        except OSError:
            return False  # No room for it; or the peer is gone, whose end is seen by the loop.
        return True

    def take(self) -> int:
        """The descriptor that came with the request that is being handled, the caller's now; -1
        for none."""
        given, self._given = self._given, -1
        return given

    def close(self) -> None:
        """Close it; packets still queued are dropped."""
        if self.fd >= 0:
            self._loop.forget(self.fd)
            self._socket.close()
            self.fd = -1
            self._closed(self)

    def flush(self) -> None:
        """Send what is queued, as far as the peer takes it at once."""
        try:
            while self._queue:
                self._socket.send(self._queue[0], _FLAGS)
                del self._queue[0]
        except OSError:
            return
        if self.fd >= 0:
            self._loop.watch(self.fd, READ, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self.flush()
        # The size is asked for, since a buffer for the largest packet would stay in memory.
        number = bytearray(4)
        ioctl(self.fd, _FIONREAD, number)
        size = int.from_bytes(number, "little") or 1
        rights: list[tuple[int, int, bytes]] = []
        try:
            packet, rights, _, _ = self._socket.recvmsg(size, _SPACE, MSG_DONTWAIT | _CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        for _, _, data in rights:
            self._given = int.from_bytes(data[:4], "little")
        if not packet:
            self.close()
            return
        try:
            head, raw = split(packet)
        except ValueError as error:
            self.send({"id": None, "error": {"kind": "invalid_parameter", "message": str(error)}})
            return
        self._handler(self, head, raw)
        if (given := self.take()) >= 0:
            os.close(given)


class Listener:
    """`shim.sock`, and every connection of the shim."""

    __slots__ = ("_forgotten", "_handler", "_loop", "_socket", "connections")

    def __init__(
        self, loop: Loop, fd: int, handler: Request, forgotten: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._handler = handler
        self._forgotten = forgotten
        self.connections: list[Connection] = []
        self._socket = socket(AF_UNIX, _TYPE, 0, fd)
        loop.watch(fd, READ, self._accept)

    @property
    def fd(self) -> int:
        """The listening descriptor."""
        return self._socket.fileno()

    def add(self, fd: int) -> Connection:
        """Speak over a connected socket."""
        sock = socket(AF_UNIX, _TYPE, 0, fd)
        connection = Connection(self._loop, sock, self._handler, self._remove)
        self.connections.append(connection)
        return connection

    def tell(self, event: Fields) -> None:
        """Send an event to every peer."""
        for connection in self.connections[:]:
            connection.send(event)

    def close(self) -> None:
        """Stop listening, send what is queued, and end every conversation."""
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        for connection in self.connections[:]:
            connection.flush()
            connection.close()

    def _accept(self, events: int) -> None:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        self.add(fd)

    def _remove(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self._forgotten(connection)


def listen(path: str) -> socket:
    """A listening socket at `path`, relative to the working directory: sun_path is short."""
    sock = socket(AF_UNIX, _TYPE)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock.bind(path)
    sock.listen(16)
    return sock


def connect(path: str) -> socket | None:
    """A socket connected to who listens at `path`; None if nobody does."""
    sock = socket(AF_UNIX, _TYPE)
    directory = -1
    try:
        if len(path) > 100:
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
            path = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


def send_with(sock: socket, packet: bytes, fds: list[int]) -> None:
    """Send a packet and duplicates of descriptors (at most 253). OSError."""
    rights = b"".join([fd.to_bytes(4, "little") for fd in fds])
    sock.sendmsg([packet], [(SOL_SOCKET, SCM_RIGHTS, rights)] if fds else [], _FLAGS)


def send_to(fd: int, packet: bytes, fds: list[int]) -> None:
    """The same to a socket of which there is a descriptor, which is closed; it may be full."""
    sock = socket(AF_UNIX, _TYPE, 0, fd)
    try:
        send_with(sock, packet, fds)
    except OSError:
        pass
    sock.close()


def receive_with(sock: socket, size: int) -> tuple[bytes, list[int]]:
    """The next packet, not waited for, and the descriptors that came with it; b"" at the end."""
    try:
        packet, ancillary, _, _ = sock.recvmsg(size, CMSG_SPACE(253 * 4), _FLAGS | _CLOEXEC)
    except BlockingIOError:
        return b"", []
    fds = []
    for _, _, rights in ancillary:
        fds += [
            int.from_bytes(rights[at : at + 4], "little") for at in range(0, len(rights) - 3, 4)
        ]
    return packet, fds
