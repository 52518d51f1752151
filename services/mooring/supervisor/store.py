"""The descriptor store of one service: what it wants to find again after a restart."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

CAPACITY = 8192
"""Descriptors of one service; what goes over is refused, that is, closed."""


class DescriptorStore:
    """Descriptors by name, in the order in which they came.

    One whose other end has hung up is dropped (systemd does the same), told by `poll`.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[str, int]] = []
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """Readable when `poll` has something to do."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> list[tuple[str, int]]:
        """Name and descriptor."""
        return list(self._kept)

    def add(self, name: str, descriptors: list[int]) -> bool:
        """Keep descriptors (they are ours from now on); False if there is no room."""
        if len(self._kept) + len(descriptors) > CAPACITY:
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        for descriptor in descriptors:
            self._kept.append((name, descriptor))
            try:
                # No events asked for: EPOLLHUP and EPOLLERR are always reported.
                self._epoll.register(descriptor, 0)
            except PermissionError:
                pass  # A file or a memfd: nothing at its other end that could go.
        return True

    def remove(self, name: str) -> None:
        """Close every descriptor of this name."""
        self._drop(lambda kept: kept[0] == name)

    def poll(self) -> None:
        """Close what has hung up."""
        gone = {descriptor for descriptor, _ in self._epoll.poll(0)}
        if gone:
            self._drop(lambda kept: kept[1] in gone)

    def close(self) -> None:
        """Close everything."""
        self._drop(lambda kept: True)
        self._epoll.close()

    def _drop(self, unwanted: Callable[[tuple[str, int]], bool]) -> None:
        for kept in [kept for kept in self._kept if unwanted(kept)]:
            self._kept.remove(kept)
            try:
                # The service may hold a duplicate: closing ours alone would leave it registered.
                self._epoll.unregister(kept[1])
            except (FileNotFoundError, PermissionError):
                pass
            os.close(kept[1])
