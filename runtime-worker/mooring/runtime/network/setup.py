"""What a host needs once for its default bridge: the link, its address, the NAT rule.

Run as a child process of the worker (`python -m mooring.runtime.network.setup`), one JSON object
on stdin, one on stdout: pyroute2 is 20 MB that nobody needs after this.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from . import firewall, nft
from .addresses import free_subnet

DEFAULT_MTU = 1500


def _used(ipr: Any, bridge_index: int | None) -> list[IPv4Network]:
    """The networks that the host has routes to, the default route and our bridge left out."""
    found = []
    for route in ipr.get_routes(family=2):
        destination = route.get_attr("RTA_DST")
        if destination and route.get_attr("RTA_OIF") != bridge_index:
            found.append(IPv4Network(f"{destination}/{route['dst_len']}", strict=False))
    return found


def _mtu(ipr: Any) -> int:
    """Of the link of the default route: larger packets would be dropped there."""
    for route in ipr.get_routes(family=2):
        if route.get_attr("RTA_DST") is None and route["dst_len"] == 0:
            index = route.get_attr("RTA_OIF")
            if index is None:
                continue
            [link] = ipr.get_links(index)
            return int(link.get_attr("IFLA_MTU"))
    return DEFAULT_MTU


def _bridge_address(ipr: Any, index: int) -> IPv4Interface | None:
    for item in ipr.get_addr(index=index, family=2):
        return IPv4Interface(f"{item.get_attr('IFA_ADDRESS')}/{item['prefixlen']}")
    return None


def _nft(text: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"nft: {done.stderr.strip()}")


def ensure(bridge: str, table: str, wanted: str, kept: str = "") -> dict[str, Any]:
    """Make what is missing; what is there stays untouched.

    wanted: a subnet that the user has set, or empty to choose. kept: the one chosen last time,
    taken again unless somebody else has it by now.
    """
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        found = ipr.link_lookup(ifname=bridge)
        index = found[0] if found else None
        own = _bridge_address(ipr, index) if index is not None else None
        mtu = _mtu(ipr)
        if own is None or (wanted and own.network != IPv4Network(wanted)):
            used = _used(ipr, index)
            subnet = IPv4Network(wanted) if wanted else free_subnet(used, kept)
            own = IPv4Interface(f"{subnet.network_address + 1}/{subnet.prefixlen}")
            if index is None:
                # A fixed MAC: else it is the lowest of its ports', and neighbours lose it.
                mac = "02:42:" + ":".join(f"{byte:02x}" for byte in own.ip.packed)
                ipr.link("add", ifname=bridge, kind="bridge", address=mac, mtu=mtu)
                [index] = ipr.link_lookup(ifname=bridge)
            else:
                ipr.flush_addr(index=index)
            ipr.addr(
                "add",
                index=index,
                address=str(own.ip),
                prefixlen=own.network.prefixlen,
                broadcast=str(own.network.broadcast_address),
            )
        ipr.link("set", index=index, state="up")
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    if forward.read_text().strip() == "0":
        forward.write_text("1")
    rebuilt = ensure_table(table)
    elements = firewall.network_elements(bridge, [own.network])
    with contextlib.closing(nft.Nft(table)) as open_table:
        open_table.change(add=elements)
    _let_loopback_out(bridge)
    answer = {"subnet": str(own.network), "gateway": str(own.ip), "mtu": mtu}
    return {**answer, "rebuilt": rebuilt}


def ensure_table(table: str) -> bool:
    """See that the table is there with all its rules; True if it had to be made, empty."""
    with contextlib.closing(nft.Nft(table)) as found:
        if found.rules() == firewall.RULES:
            return False
    # Until 2026-11-24 it was a table of family ip.
    _nft(f"add table ip {table}\ndelete table ip {table}\n" + firewall.text(table))
    return True


def _let_loopback_out(bridge: str) -> None:
    """Have packets from 127.0.0.1 routed to the bridge, for ports published on the loopback.

    It would let containers reach the host's loopback as well: the chain `raw` prevents that.
    """
    Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet").write_text("1")


def remove(bridge: str, table: str) -> dict[str, Any]:
    """Take link and table away again; not being there is fine."""
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        for index in ipr.link_lookup(ifname=bridge):
            ipr.link("del", index=index)
    # `destroy` is newer than nft 1.0.6: declare it first, so that there is something to delete.
    _nft(f"add table inet {table}\ndelete table inet {table}\n")
    return {}


def main() -> None:
    """Answer one request: {"action": "ensure"|"remove", "bridge", "table", "subnet", "kept"}."""
    request = json.load(sys.stdin)
    try:
        if request["action"] == "ensure":
            wanted, kept = request.get("subnet", ""), request.get("kept", "")
            answer = ensure(request["bridge"], request["table"], wanted, kept)
        else:
            answer = remove(request["bridge"], request["table"])
    except Exception as exc:
        answer = {"error": f"{type(exc).__name__}: {exc}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
