"""The descriptor store of one service: what it wants to find again after a restart."""

from __future__ import annotations

import fcntl
import os
import select

CAPACITY = 8192
"""Descriptors of one service; what goes over is refused, that is, closed."""


class DescriptorStore:
    """Descriptors by name; of one name in the order in which they came.

    One whose other end has hung up is dropped (systemd does the same), told by `poll`.
    """

    def __init__(self) -> None:
        self._kept: dict[str, list[int]] = {}
        self._polled: set[int] = set()
        self._count = 0
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """Readable when `poll` has something to do."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        return self._count

    def items(self) -> list[tuple[str, int]]:
        """Name and descriptor."""
        return [(name, kept) for name, descriptors in self._kept.items() for kept in descriptors]

    def polls(self, descriptor: int) -> bool:
        """Whether it is dropped when it hangs up."""
        return descriptor in self._polled

    def told(self, fields: dict[str, str], descriptors: list[int]) -> bool:
        """What a service says (FDSTORE, FDSTOREREMOVE): keep the descriptors that came with it, or
        close them. False if there was no room."""
        kept = True
        name = fields.get("FDNAME", "stored")
        if "FDSTORE" in fields:
            kept = self.add(name, descriptors, fields.get("FDPOLL") != "0")
        else:
            for descriptor in descriptors:
                os.close(descriptor)
        if "FDSTOREREMOVE" in fields:
            self.remove(name)
        return kept

    def forked(self) -> None:
        """In a child of the process that it was made in: watch for oneself."""
        self._epoll.close()
        self._epoll = select.epoll()
        for descriptor in self._polled:
            self._epoll.register(descriptor, 0)

    def add(self, name: str, descriptors: list[int], poll: bool = True) -> bool:
        """Keep descriptors (they are ours from now on); False if there is no room.

        poll: drop them when they hang up. A file that is kept by this name already is kept once:
        what was said to a supervisor that was killed then may be heard again.
        """
        descriptors = self._new(name, descriptors)
        if self._count + len(descriptors) > CAPACITY:
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        self._kept.setdefault(name, []).extend(descriptors)
        self._count += len(descriptors)
        for descriptor in descriptors if poll else ():
            try:
                # No events asked for: EPOLLHUP and EPOLLERR are always reported.
                self._epoll.register(descriptor, 0)
                self._polled.add(descriptor)
            except OSError:
                pass  # A file or a memfd (EPERM): nothing at its other end that could go. Or one
                # that is watched so often (EINVAL) that the kernel refuses.
        return True

    def _new(self, name: str, descriptors: list[int]) -> list[int]:
        """Those whose files are not kept by this name; the others are closed."""
        known = {_file(descriptor) for descriptor in self._kept.get(name, ())}
        new = []
        for descriptor in descriptors:
            if _file(descriptor) in known:
                os.close(descriptor)
            else:
                new.append(descriptor)
        return new

    def remove(self, name: str) -> None:
        """Close every descriptor of this name."""
        for descriptor in self._kept.pop(name, ()):
            self._close(descriptor)

    def poll(self) -> None:
        """Close what has hung up."""
        gone = {descriptor for descriptor, _ in self._epoll.poll(0)}
        for name in list(self._kept) if gone else ():
            for descriptor in gone.intersection(self._kept[name]):
                self._kept[name].remove(descriptor)
                self._close(descriptor)
            if not self._kept[name]:
                del self._kept[name]

    def close(self) -> None:
        """Close everything."""
        for name in list(self._kept):
            self.remove(name)
        self._epoll.close()

    def _close(self, descriptor: int) -> None:
        self._count -= 1
        self._polled.discard(descriptor)
        try:
            # The service may hold a duplicate: closing ours alone would leave it registered.
            self._epoll.unregister(descriptor)
        except (FileNotFoundError, PermissionError):
            pass
        os.close(descriptor)


def _file(descriptor: int) -> tuple[int, int, int]:
    """What tells one open file from another: each socket has a number, the ends of a pipe differ
    in how they are open. (kcmp(2) would be sure, of files that nobody stores.)"""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
