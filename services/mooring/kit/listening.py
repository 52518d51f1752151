"""Listening sockets of the API: made by the supervisor, or by a gateway that was handed none."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from collections.abc import Iterable

from .config import parse_host

BACKLOG = 4096
"""Connections that wait in the kernel while a gateway is being restarted."""
GROUPS = ("mooring", "docker")
"""Whose members may use the unix socket; the first that exists."""


class AddressInUse(Exception):
    """Somebody else answers at this address; the message names it."""


def listen(hosts: Iterable[str]) -> list[tuple[str, socket.socket]]:
    """Listening sockets with their LISTEN_FDNAMES: `unix` or `tcp`; AddressInUse, OSError."""
    with contextlib.ExitStack() as opened:
        sockets = []
        for host in hosts:
            kind, address, port = parse_host(host)
            made = _unix(address) if kind == "unix" else _tcp(host, address, port)
            opened.enter_context(made)
            sockets.append((kind, made))
        opened.pop_all()
    return sockets


def close(hosts: Iterable[str], sockets: Iterable[tuple[str, socket.socket]]) -> None:
    """Close them and remove the socket files."""
    for _, made in sockets:
        made.close()
    for host in hosts:
        kind, path, _ = parse_host(host)
        if kind == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def bind_privately(made: socket.socket, path: str) -> None:
    """Bind it to a path where nobody but root can connect, not even for a moment."""
    previous = os.umask(0o177)
    try:
        made.bind(path)
    finally:
        os.umask(previous)


def _unix(path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX)
    try:
        # Nobody may connect before the file has its group.
        bind_privately(made, path)
        group = _group()
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, 0o660)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressInUse(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass  # Left behind by an engine that was killed.
        else:
            raise AddressInUse(f"something else already listens on {path}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _tcp(host: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind((address, port))
        made.listen(BACKLOG)
    except OSError as exc:
        made.close()
        raise AddressInUse(f"cannot listen on {host}: {exc.strerror}") from exc
    return made


def _group() -> int | None:
    """The group whose members may use the API: `mooring`, else `docker`, if they exist."""
    for name in GROUPS:
        with contextlib.suppress(KeyError):
            return grp.getgrnam(name).gr_gid
    return None
