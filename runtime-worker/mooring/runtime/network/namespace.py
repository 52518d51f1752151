"""Making network namespaces and working in them; for a process with one thread."""

from __future__ import annotations

import ctypes
import os

from . import netlink

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def new_namespace(home: int) -> tuple[int, netlink.Route]:
    """A network namespace and a netlink socket in it; we are back in `home` when this returns."""
    _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
    try:
        # As Docker: a network without IPv6 shows none but on lo (which exists already).
        try:
            with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "wb", 0) as file:
                file.write(b"1")
        except OSError:
            pass  # a kernel without IPv6
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), netlink.Route()
    finally:
        _check(_libc.setns(home, CLONE_NEWNET), "setns")


class Inside:
    """Be in a namespace, with a netlink socket there; back in `home` after it.

    No generator: contextlib would bring half a dozen modules into the process.
    """

    __slots__ = ("_home", "_inside", "_namespace")

    def __init__(self, home: int, namespace: int) -> None:
        self._home = home
        self._namespace = namespace

    def __enter__(self) -> netlink.Route:
        _check(_libc.setns(self._namespace, CLONE_NEWNET), "setns")
        try:
            self._inside = netlink.Route()
        except BaseException:
            _check(_libc.setns(self._home, CLONE_NEWNET), "setns")
            raise
        return self._inside

    def __exit__(self, *_: object) -> None:
        self._inside.close()
        _check(_libc.setns(self._home, CLONE_NEWNET), "setns")
