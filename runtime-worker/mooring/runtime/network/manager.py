"""The process manager's protocols (sd_notify) for a process of the standard library alone.

kit.process has the same for the services on an event loop; that one imports 15 MB.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

_FIRST_FD = 3


class Manager:
    """What this process is told at its start, and what it tells."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.watchdog = int(os.environ.pop("WATCHDOG_USEC", "0")) / 2_000_000
        """Seconds between signs of life, 0 for none."""
        self.descriptors = _passed()
        """Name and descriptor of each that was passed or had been stored."""

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for whoever asks how it goes."""
        self._send(f"STATUS={text}")

    def store(self, name: str, descriptors: Sequence[int]) -> None:
        """Keep duplicates: the next process finds them. name has no colon; at most 250 at once."""
        self._send(f"FDSTORE=1\nFDNAME={name}", descriptors)

    def unstore(self, name: str) -> None:
        """Drop what is stored by this name."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, text: str, descriptors: Sequence[int] = ()) -> None:
        if not self._address:
            return
        rights = []
        if descriptors:
            packed = array.array("i", descriptors).tobytes()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
        try:
            self._socket.sendmsg([text.encode()], rights, 0, self._address)
        except OSError:
            # It may be restarting; what it has to keep, it learns anew from the next one of us.
            pass


def _passed() -> list[tuple[str, int]]:
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    found = []
    for index in range(count):
        os.set_inheritable(_FIRST_FD + index, False)
        found.append((names[index] if index < len(names) else "", _FIRST_FD + index))
    return found
