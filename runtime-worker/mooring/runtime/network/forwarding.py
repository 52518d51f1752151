"""What other programs' packet filters do to forwarded packets, ours included.

A packet has to pass every table of the host, and dockerd (like many a firewall) sets the policy of
its FORWARD chain to drop. We touch nobody else's rules: `mooring doctor` says what is in the way
and which command of the user's lets our packets pass.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

Subnet = IPv4Network | IPv6Network
_OURS = "mooring"
_VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_TIMEOUT = 10.0
"""Seconds for a program that lists rules."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A chain that drops our packets. subnets: of ours, those that no rule lets pass there."""

    where: str
    subnets: tuple[Subnet, ...]
    docker: bool
    """dockerd's chain for the user's own rules is there."""
    legacy: bool = False
    """The chain is one of the kernel's older interface, and so of programs of their own."""

    def remedy(self) -> str:
        """What to do about it: one line for a shell where there is one."""
        if not self.docker:
            return f"let packets from and to {_listed(self.subnets)} pass there"
        suffix = "-legacy" if self.legacy else ""
        commands = [
            f"{program}{suffix} -I DOCKER-USER {way} {_listed(mine)} -j ACCEPT"
            for version, program in ((4, "iptables"), (6, "ip6tables"))
            if (mine := [net for net in self.subnets if net.version == version])
            for way in ("-s", "-d")
        ]
        return "; ".join(commands)


def obstacles() -> list[Obstacle]:
    """What is in the way on this host now; needs root. Nothing if no network of ours is there."""
    out = _output("nft", "-j", "list", "ruleset")
    ruleset = json.loads(out)["nftables"] if out else []
    found = list(of_nft(ruleset))
    for version, program in ((4, "iptables-legacy"), (6, "ip6tables-legacy")):
        # Asking would make the kernel set up a table that nobody uses.
        names = Path(f"/proc/thread-self/net/{'ip' if version == 4 else 'ip6'}_tables_names")
        if names.exists() and "filter" in names.read_text().split():
            rules = _output(program, "-S")
            found += of_legacy(rules.splitlines(), subnets(ruleset, (version,)), program)
    return found


def of_nft(ruleset: Sequence[Mapping[str, Any]]) -> Iterator[Obstacle]:
    """Those among the objects of `nft -j list ruleset`."""
    for chain in (item["chain"] for item in ruleset if "chain" in item):
        family, table = chain["family"], chain["table"]
        drops = chain.get("hook") == "forward" and chain.get("policy") == "drop"
        if not drops or family not in _VERSIONS or table.startswith(_OURS):
            continue
        ours = subnets(ruleset, _VERSIONS[family])
        rules = [
            item["rule"]
            for item in ruleset
            if "rule" in item and (item["rule"]["family"], item["rule"]["table"]) == (family, table)
        ]
        left = _not_passing(ours, list(_passing(rules)))
        if left:
            docker = any(
                (each["family"], each["table"], each["name"]) == (family, table, "DOCKER-USER")
                for each in (item["chain"] for item in ruleset if "chain" in item)
            )
            where = f"chain {chain['name']} of table {family} {table} has the policy drop"
            yield Obstacle(where, left, docker)


def of_legacy(rules: Iterable[str], ours: Sequence[Subnet], program: str) -> Iterator[Obstacle]:
    """The one in what `iptables-legacy -S` prints, if there is one."""
    lines = [line.split() for line in rules]
    if ["-P", "FORWARD", "DROP"] not in lines:
        return
    passing = [
        (line[2], ip_network(line[3]))
        for line in lines
        if line[:1] == ["-A"] and line[2] in ("-s", "-d") and line[4:] == ["-j", "ACCEPT"]
    ]
    left = _not_passing(ours, passing)
    if left:
        where = f"chain FORWARD of {program} has the policy DROP"
        yield Obstacle(where, left, ["-N", "DOCKER-USER"] in lines, legacy=True)


def subnets(ruleset: Sequence[Mapping[str, Any]], versions: Sequence[int]) -> list[Subnet]:
    """The subnets of all networks of ours that are there, from our tables' own sets."""
    found: set[Subnet] = set()
    for item in (item["set"] for item in ruleset if "set" in item):
        if item["table"].startswith(_OURS) and item["name"] in ("local4", "local6"):
            for element in item.get("elem", ()):
                network = _network(element["concat"][1])
                if network is not None and network.version in versions:
                    found.add(network)
    return sorted(found, key=lambda net: (net.version, int(net.network_address)))


def _passing(rules: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Subnet]]:
    """(`-s` or `-d`, subnet) of each rule that lets all packets from or to a subnet pass."""
    for rule in rules:
        matches = [part["match"] for part in rule["expr"] if "match" in part]
        if len(matches) != 1 or not any("accept" in part for part in rule["expr"]):
            continue
        field = matches[0]["left"].get("payload", {}).get("field")
        network = _network(matches[0]["right"])
        if field in ("saddr", "daddr") and network is not None:
            yield "-s" if field == "saddr" else "-d", network


def _not_passing(
    ours: Iterable[Subnet], passing: Sequence[tuple[str, Subnet]]
) -> tuple[Subnet, ...]:
    return tuple(
        net
        for net in ours
        if not all(
            any(way == wanted and _within(net, other) for way, other in passing)
            for wanted in ("-s", "-d")
        )
    )


def _within(net: Subnet, other: Subnet) -> bool:
    if isinstance(net, IPv4Network) and isinstance(other, IPv4Network):
        return net.subnet_of(other)
    if isinstance(net, IPv6Network) and isinstance(other, IPv6Network):
        return net.subnet_of(other)
    return False


def _network(value: Any) -> Subnet | None:
    """A prefix or an address as nft writes it in JSON."""
    if isinstance(value, dict) and "prefix" in value:
        return ip_network(f"{value['prefix']['addr']}/{value['prefix']['len']}")
    if isinstance(value, str):
        try:
            return ip_network(value)
        except ValueError:
            return None
    return None


def _listed(nets: Iterable[Subnet]) -> str:
    return ",".join(map(str, nets))


def _output(*command: str) -> str:
    """What a program prints; empty if it is not there or fails."""
    program = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""
