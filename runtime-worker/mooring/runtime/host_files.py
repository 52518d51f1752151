"""The host's own /etc/hosts and resolv.conf, read again only when they have changed."""

from __future__ import annotations

import os

from .files import has_only_loopback

RESOLV = "/etc/resolv.conf"
RESOLV_BEHIND_STUB = "/run/systemd/resolve/resolv.conf"
"""The real servers, where /etc/resolv.conf names only systemd-resolved's own address."""


class HostFile:
    """A text file of the host."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._text = ""

    def text(self) -> str:
        """What is in it now; empty if it is not there."""
        try:
            info = os.stat(self._path)
            seen = (info.st_mtime_ns, info.st_size, info.st_ino)
            if seen != self._seen:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._text = file.read()
                self._seen = seen
        except OSError:
            self._seen, self._text = None, ""
        return self._text


class NameFiles:
    """What the host knows of names."""

    def __init__(self) -> None:
        self._hosts = HostFile("/etc/hosts")
        self._resolv = HostFile(RESOLV)
        self._behind = HostFile(RESOLV_BEHIND_STUB)

    def hosts(self) -> str:
        """/etc/hosts."""
        return self._hosts.text()

    def resolv(self, *, shared: bool) -> str:
        """resolv.conf; shared: for a container that can reach the host's loopback."""
        text = self._resolv.text()
        if not shared and has_only_loopback(text):
            return self._behind.text() or text
        return text
