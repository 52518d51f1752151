"""Where a registry is asked, and how far its certificate is trusted."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mooring.kit import references

from .words import TransferFault

HUB = "https://registry-1.docker.io"
_LOOPBACK = ("127.0.0.0/8", "::1/128")


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings about registries, for the process that talks to them."""

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    certs_dir: Path = Path("/etc/docker/certs.d")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL; domain is what its certificates are filed under."""

    url: str
    domain: str
    verified: bool = True
    mirror: bool = False


def endpoints(domain: str, rules: Rules, *, mirrors: bool) -> list[Endpoint]:
    """Where to ask for a registry's images, in order; resolves names for CIDR rules (blocks)."""
    found: list[Endpoint] = []
    if domain == references.DEFAULT_DOMAIN:
        for url in rules.mirrors if mirrors else ():
            host = urlsplit(url).netloc
            found.append(Endpoint(url, host, not is_insecure(host, rules.insecure), mirror=True))
        return [*found, Endpoint(HUB, domain)]
    if is_insecure(domain, rules.insecure):
        return [Endpoint(f"https://{domain}", domain, False), Endpoint(f"http://{domain}", domain)]
    return [Endpoint(f"https://{domain}", domain)]


def is_insecure(domain: str, entries: Sequence[str]) -> bool:
    """Whether a registry may be asked without TLS; this host itself always may."""
    host = urlsplit(f"//{domain}").hostname or domain
    if domain in entries or host in entries:
        return True
    networks = [ipaddress.ip_network(text, strict=False)
                for text in (*_LOOPBACK, *(e for e in entries if "/" in e))]  # fmt: skip
    return any(address in network for address in _addresses(host) for network in networks)


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


Stamp = tuple[tuple[str, int], ...]
"""Files and when they were changed."""


def stamp(endpoint: Endpoint, certs_dir: Path) -> Stamp:
    """Tells whether the certificates for an endpoint are other ones by now."""
    try:
        with os.scandir(certs_dir / endpoint.domain) as files:
            return tuple(sorted((file.name, file.stat().st_mtime_ns) for file in files))
    except OSError:
        return ()


def tls_context(endpoint: Endpoint, certs_dir: Path) -> ssl.SSLContext:
    """Trust and client certificates as `certs.d/<host:port>` has them; TransferFault."""
    if endpoint.verified:
        context = ssl.create_default_context()
    else:
        # Without the host's certificates, which take 35 ms of CPU to read.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    directory = certs_dir / endpoint.domain
    try:
        files = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return context
    except OSError as exc:
        raise TransferFault(f"cannot read {directory}: {exc.strerror}") from exc
    names = {file.name for file in files}
    for file in files:
        try:
            if file.suffix == ".crt":
                context.load_verify_locations(file)
            elif file.suffix == ".cert":
                key = file.with_suffix(".key")
                if key.name not in names:
                    raise TransferFault(
                        f"missing key {key.name} for client certificate {file.name}. "
                        "CA certificates must use the extension .crt"
                    )
                context.load_cert_chain(file, key)
            elif file.suffix == ".key" and file.with_suffix(".cert").name not in names:
                raise TransferFault(
                    f"missing client certificate {file.with_suffix('.cert').name} "
                    f"for key {file.name}"
                )
        except (ssl.SSLError, OSError) as exc:
            raise TransferFault(f"cannot use {file}: {exc}") from exc
    return context
