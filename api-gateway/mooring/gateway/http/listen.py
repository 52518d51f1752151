"""The sockets of the API: those we were handed, or our own."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import ssl

from mooring.kit.config import ConfigError, Settings, parse_host

HANDED = ("unix", "tcp")
"""The names (LISTEN_FDNAMES) of listening sockets of the API."""
GROUPS = ("mooring", "docker")
"""Whose members may use the unix socket; the first that exists."""


def open_all(
    settings: Settings, handed: dict[str, list[socket.socket]]
) -> list[tuple[socket.socket, ssl.SSLContext | None]]:
    """Every listening socket with its TLS context: what was handed over, else settings.host."""
    mine = [sock for name in HANDED for sock in handed.get(name, [])]
    if not mine:
        mine = [_open(*parse_host(address)) for address in settings.host]
    context: ssl.SSLContext | None = None
    found: list[tuple[socket.socket, ssl.SSLContext | None]] = []
    for sock in mine:
        if sock.family == socket.AF_UNIX:
            found.append((sock, None))
            continue
        if context is None:
            context = tls_context(settings)
        found.append((sock, context))
    return found


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS that asks every client for a certificate; None only with tcp_insecure; ConfigError."""
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_ca
    if cert is None and key is None and ca is None and settings.tcp_insecure:
        return None
    for name, path in (("tls_cert", cert), ("tls_key", key), ("tls_ca", ca)):
        if path is None:
            raise ConfigError(
                f"{name}: needed to listen on TCP (or tcp_insecure, which makes everyone who "
                "reaches the port root on this host)"
            )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(str(cert), str(key))
        context.load_verify_locations(str(ca))
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"tls_cert, tls_key, tls_ca: {exc}") from exc
    return context


def _open(kind: str, address: str, port: int) -> socket.socket:
    if kind == "tcp":
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.create_server((address, port), family=family, backlog=4096)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    _remove_stale(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody else may connect in the moment before the group is set.
    previous = os.umask(0o117)
    try:
        sock.bind(address)
    finally:
        os.umask(previous)
    with contextlib.suppress(PermissionError):
        os.chown(address, -1, _group())
    sock.listen(4096)
    return sock


def _remove_stale(path: str) -> None:
    """Take away a socket that nobody listens on; ConfigError if somebody does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError as exc:
        raise ConfigError(f"host: cannot use {path}: {exc.strerror}") from exc
    else:
        raise ConfigError(f"host: {path} is in use by another process")


def _group() -> int:
    for name in GROUPS:
        with contextlib.suppress(KeyError):
            return grp.getgrnam(name).gr_gid
    return -1
