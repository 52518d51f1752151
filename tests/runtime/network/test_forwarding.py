"""Packet filters of other programs that drop what our networks forward."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from mooring.runtime.network import firewall, forwarding, nft
from mooring.runtime.network.forwarding import Obstacle, of_legacy

from .namespace import leave_network

DROPPING = "{ type filter hook forward priority 0; policy drop; }"
SIX = IPv6Network("fd00:1::/64")
OURS = [IPv4Network("10.209.0.0/16"), IPv4Network("10.176.0.0/20")]


def run(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, capture_output=True)


def look() -> list[tuple[str, str]]:
    return [(item.where, item.remedy()) for item in forwarding.obstacles()]


@pytest.mark.kernel
def test_a_dropping_chain_is_found_until_the_remedy_is_there() -> None:
    found: list[list[tuple[str, str]]] = []

    def in_a_namespace_of_its_own(steps: Callable[[], None]) -> None:
        leave_network()
        steps()

    def steps() -> None:
        run(firewall.text("mooring-test"))
        with contextlib.closing(nft.Nft("mooring-test")) as table:
            table.change(add=firewall.network_elements("mr0", [*OURS, SIX]))
        found.append(look())
        for family in ("ip", "ip6"):
            run(f"add table {family} filter\nadd chain {family} filter FORWARD {DROPPING}")
        found.append(look())
        run("add chain ip filter DOCKER-USER")
        found.append(look())
        for rule in ("saddr 10.176.0.0/12", "daddr 10.176.0.0/12", "saddr 10.209.0.0/16"):
            run(f"add rule ip filter DOCKER-USER ip {rule} counter accept")
        found.append(look())
        run("add rule ip filter DOCKER-USER ip daddr 10.209.0.0/16 counter accept")
        found.append(look())

    with ThreadPoolExecutor(1) as thread:
        thread.submit(in_a_namespace_of_its_own, steps).result()
    where = "chain FORWARD of table {} filter has the policy drop"
    both = "10.176.0.0/20,10.209.0.0/16"
    # dockerd has a chain for the user's rules in one of the tables only.
    six = (where.format("ip6"), "let packets from and to fd00:1::/64 pass there")
    assert found == [
        [],
        [(where.format("ip"), f"let packets from and to {both} pass there"), six],
        [(where.format("ip"), f"iptables -I DOCKER-USER -s {both} -j ACCEPT; "
                              f"iptables -I DOCKER-USER -d {both} -j ACCEPT"), six],
        [(where.format("ip"), "iptables -I DOCKER-USER -s 10.209.0.0/16 -j ACCEPT; "
                              "iptables -I DOCKER-USER -d 10.209.0.0/16 -j ACCEPT"), six],
        [six],
    ]  # fmt: skip


def test_what_iptables_legacy_prints_is_read_as_well() -> None:
    rules = ["-P INPUT ACCEPT", "-P FORWARD DROP", "-N DOCKER-USER",
             "-A DOCKER-USER -s 10.176.0.0/12 -j ACCEPT",
             "-A DOCKER-USER -d 10.176.0.0/12 -j ACCEPT",
             "-A FORWARD -i docker0 -o docker0 -j ACCEPT"]  # fmt: skip
    where = "chain FORWARD of iptables-legacy has the policy DROP"
    found = Obstacle(where, (OURS[0],), docker=True, legacy=True)
    assert found.remedy().startswith("iptables-legacy -I DOCKER-USER -s 10.209.0.0/16 -j ACCEPT; ")
    assert list(of_legacy(rules, OURS, "iptables-legacy")) == [found]
    assert list(of_legacy(["-P FORWARD ACCEPT"], OURS, "iptables-legacy")) == []
    assert list(of_legacy(rules, [], "iptables-legacy")) == []


def test_each_family_has_its_own_program() -> None:
    nets = (ip_network("10.1.0.0/16"), ip_network("fd00::/64"))
    assert Obstacle("", nets, True).remedy() == (
        "iptables -I DOCKER-USER -s 10.1.0.0/16 -j ACCEPT; "
        "iptables -I DOCKER-USER -d 10.1.0.0/16 -j ACCEPT; "
        "ip6tables -I DOCKER-USER -s fd00::/64 -j ACCEPT; "
        "ip6tables -I DOCKER-USER -d fd00::/64 -j ACCEPT"
    )


@pytest.mark.kernel
def test_the_finding_of_this_host_has_words() -> None:
    from mooring.runtime import node

    finding = node.forwarding_by_others()
    assert finding.detail and (finding.ok or "DOCKER-USER" in finding.cost or "let" in finding.cost)
