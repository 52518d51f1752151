"""The stream socket between the caller and the process that is to become the container.

    caller                          child
      |  <------------------ P ------ |     it exists, in its namespaces (and cgroup)
      |  ------- J job, fds --------> |     it joins namespaces, while the caller mounts
      |  ------- M mounts, fds -----> |     root filesystem and bind mounts, to be attached
      |  <------------------ H ------ |     (with hooks) its namespaces are there
      |  ------- G -----------------> |     (the hooks of the runtime's side have run)
      |  <--------------- T, pty ---- |     (with a terminal) its master
      |  <------------------ R ------ |     everything is set up; the program was found
      |  ------- G -----------------> |     (the caller has written down that it exists)
      |  <----------- end of stream - |     executed: the socket is close-on-exec
      |  <------------------ E ------ |     or, at any point, why not: exit code and sentence

A message is a letter, a length and a marshalled value; marshal because it is the fastest there is
and both ends are one program.
"""

from __future__ import annotations

import _socket
import marshal
import os

from .errors import OciError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

PREPARED, JOB, MOUNTS, HOOKS = b"P", b"J", b"M", b"H"
TERMINAL, READY, GO, ERROR, END = b"T", b"R", b"G", b"E", b""
# SCM_MAX_FD of the kernel; the length of a header with a letter.
_MOST_DESCRIPTORS = 253
_HEADER = 5


class Channel:
    """One end. Descriptors travel with the first byte of a message, close-on-exec on arrival."""

    __slots__ = ("_socket",)

    def __init__(self, fd: int) -> None:
        self._socket = _socket.socket(fileno=fd)

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def move(self, fd: int) -> None:
        """Give it another number, close-on-exec; what had that number is closed."""
        if fd != self.fileno():
            os.dup2(self.fileno(), fd, inheritable=False)
            self._socket.close()
            self._socket = _socket.socket(fileno=fd)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def end(self) -> None:
        """Let the other side see the end of the stream, and receive on."""
        self._socket.shutdown(_socket.SHUT_WR)

    def send(self, letter: bytes, value: Any = None, fds: Sequence[int] = ()) -> None:
        """Send one message; OSError (EPIPE) when the other side is gone."""
        if len(fds) > _MOST_DESCRIPTORS:
            raise OciError(f"too many bind mounts and namespaces: {len(fds)}")
        body = b"" if value is None else marshal.dumps(value)
        data = memoryview(letter + len(body).to_bytes(4, "little") + body)
        flags = _socket.MSG_NOSIGNAL
        if fds:
            packed = b"".join(fd.to_bytes(4, "little") for fd in fds)
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
            sent = self._socket.sendmsg([data], rights, flags)
            data = data[sent:]
        while data:
            data = data[self._socket.send(data, flags) :]

    def receive(self, most_fds: int = 0) -> tuple[bytes, Any, list[int]]:
        """The next message as letter, value, descriptors; letter END at the end of the stream."""
        fds: list[int] = []
        try:
            if most_fds:
                space = _socket.CMSG_SPACE(4 * most_fds)
                flags = _socket.MSG_CMSG_CLOEXEC
                head, rights, _, _ = self._socket.recvmsg(_HEADER, space, flags)
                for _, _, packed in rights:
                    fds += [
                        int.from_bytes(packed[at : at + 4], "little")
                        for at in range(0, len(packed), 4)
                    ]
            else:
                head = self._socket.recv(_HEADER)
            if head:
                head += self._exactly(_HEADER - len(head))
            else:
                return END, None, []
            size = int.from_bytes(head[1:5], "little")
            value = marshal.loads(self._exactly(size)) if size else None
        except (ConnectionResetError, EOFError):
            return END, None, fds
        return head[:1], value, fds

    def _exactly(self, size: int) -> bytes:
        if not size:
            return b""
        parts = []
        while size:
            part = self._socket.recv(min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def pair() -> tuple[Channel, Channel]:
    """Two connected ends, both close-on-exec."""
    a, b = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return Channel(a.detach()), Channel(b.detach())
