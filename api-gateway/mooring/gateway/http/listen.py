"""The sockets of the API: those we were handed, or our own."""

from __future__ import annotations

import socket
import ssl

from mooring.kit import listening
from mooring.kit.config import ConfigError, Settings

HANDED = ("unix", "tcp")
"""The names (LISTEN_FDNAMES) of listening sockets of the API."""


def open_all(
    settings: Settings, handed: dict[str, list[socket.socket]]
) -> list[tuple[socket.socket, ssl.SSLContext | None]]:
    """Every listening socket with its TLS context: what was handed over, else settings.host."""
    mine = [sock for name in HANDED for sock in handed.get(name, [])]
    if not mine:
        try:
            mine = [sock for _, sock in listening.listen(settings.host)]
        except (listening.AddressInUse, OSError) as exc:
            raise ConfigError(f"host: {exc}") from exc
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
