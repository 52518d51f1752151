"""Pure: what the container reads in /etc/hosts, /etc/hostname and /etc/resolv.conf."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence

from mooring.kit.errors import InvalidParameter
from mooring.kit.options import extra_host

_LOCALHOST = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
INTERNAL_SERVER = "127.0.0.11"
FALLBACK_SERVERS = ("8.8.8.8", "8.8.4.4")
"""Docker's, for a host that has no name server a container could reach."""


def hosts(
    *,
    base: str | None,
    extra: Iterable[str],
    gateway: str,
    addresses: Iterable[str],
    hostname: str,
    domainname: str,
) -> str:
    """/etc/hosts. base: the host's own file for a container in its network; else None."""
    text = _LOCALHOST if base is None else base
    if text and not text.endswith("\n"):
        text += "\n"
    for entry in extra:
        name, target = extra_host(entry)
        if target == "host-gateway":
            if not gateway:
                raise InvalidParameter(
                    "unable to derive the IP value for host-gateway: the network has no gateway"
                )
            target = gateway
        text += f"{target}\t{name}\n"
    return hosts_with(text, addresses, f"{hostname}.{domainname}" if domainname else hostname)


def hosts_with(text: str, addresses: Iterable[str], name: str) -> str:
    """/etc/hosts with these addresses of the container's own added; name may have a domain."""
    bare, dot, _ = name.partition(".")
    names = f"{name} {bare}" if dot else name
    if text and not text.endswith("\n"):
        text += "\n"
    return text + "".join(f"{address}\t{names}\n" for address in addresses)


def hosts_without(text: str, addresses: Iterable[str]) -> str:
    """/etc/hosts without the lines of these addresses."""
    gone = set(addresses)
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.split(maxsplit=1)[:1] not in [[a] for a in gone])


def resolv(
    host_text: str,
    *,
    servers: Sequence[str],
    search: Sequence[str],
    options: Sequence[str],
    keep_loopback: bool,
    dns: bool = False,
) -> str:
    """/etc/resolv.conf: the host's, with what the user said in place of the same lines.

    keep_loopback: the container shares the host's network, where 127.0.0.53 answers.
    dns: it is on a user-defined network, where our own server answers.
    """
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in host_text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            if keep_loopback or not _is_loopback(words[1]):
                found["nameserver"].append(words[1])
        elif words[0] in ("search", "domain"):
            found["search"] = words[1:]
        elif words[0] == "options":
            found["options"] += words[1:]
    names = list(servers) or found["nameserver"] or list(FALLBACK_SERVERS)
    if dns:
        names = [INTERNAL_SERVER]
    lines = [f"nameserver {server}" for server in names]
    domains = list(search) or found["search"]
    # `--dns-search .` is Docker's way to say: none.
    if domains and domains != ["."]:
        lines.append("search " + " ".join(domains))
    chosen = list(options) or found["options"]
    if dns and not any(option.startswith("ndots:") for option in chosen):
        # A name without a dot is one of ours, and is to be asked for as it is.
        chosen.append("ndots:0")
    if chosen:
        lines.append("options " + " ".join(chosen))
    return "\n".join(lines) + "\n"


def resolv_internal(text: str) -> str:
    """A container's resolv.conf once it has come to a user-defined network."""
    return resolv(text, servers=(), search=(), options=(), keep_loopback=True, dns=True)


def has_only_loopback(host_text: str) -> bool:
    """Whether every name server in a resolv.conf is one of the host's own loopback."""
    words = [line.split() for line in host_text.splitlines()]
    servers = [pair[1] for pair in words if len(pair) > 1 and pair[0] == "nameserver"]
    return bool(servers) and all(map(_is_loopback, servers))


@functools.lru_cache(maxsize=64)
def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
