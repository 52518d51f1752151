"""The engine's one nftables table: rules that are written once, sets and maps that change.

A network is a few elements (`network_elements`), a published port one. Nothing here is ever
changed by rule, so what a container costs does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from . import nft

RULES = 19
"""Rules in the table: fewer mean that somebody flushed it."""


def text(table: str) -> str:
    """The whole table, for nft(8): made anew in one transaction, its sets empty.

    `local` sets: which subnet is behind which bridge. A packet that goes out where its source
    lives is not masqueraded, unless its destination was translated: then the answer has to come
    back through here (hairpin). `oifname` and not `iifname` decides, which is not known there
    for a packet that a bridge hands to iptables (br_netfilter).
    """
    return f"""
add table inet {table}
delete table inet {table}
table inet {table} {{
  set bridges {{ type ifname; }}
  set same {{ type ifname . ifname; }}
  set noicc {{ type ifname; }}
  set internal {{ type ifname; }}
  set masq4 {{ type ipv4_addr; flags interval; }}
  set masq6 {{ type ipv6_addr; flags interval; }}
  set local4 {{ type ifname . ipv4_addr; flags interval; }}
  set local6 {{ type ifname . ipv6_addr; flags interval; }}
  map ports4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map ports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map ports4_at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map ports6_at {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr 127.0.0.0/8 iifname @bridges drop
  }}
  chain publish {{
    dnat ip to ip daddr . meta l4proto . th dport map @ports4_at
    dnat ip to meta l4proto . th dport map @ports4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at
    dnat ip6 to meta l4proto . th dport map @ports6
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump publish
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    ip6 daddr ::1 return
    fib daddr type local jump publish
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat oifname . ip saddr @local4 masquerade
    ct status dnat oifname . ip6 saddr @local6 masquerade
    ct status dnat ip saddr 127.0.0.0/8 oifname @bridges masquerade
    ip saddr @masq4 oifname . ip saddr != @local4 masquerade
    ip6 saddr @masq6 oifname . ip6 saddr != @local6 masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    ct status dnat accept
    iifname @internal iifname . oifname != @same drop
    iifname @noicc iifname . oifname @same drop
    iifname . oifname @same accept
    oifname @bridges drop
  }}
}}
"""


def network_elements(
    bridge: str,
    subnets: Sequence[IPv4Network | IPv6Network],
    *,
    masquerade: bool = True,
    internal: bool = False,
    icc: bool = True,
) -> list[nft.Element]:
    """Everything that the table has to know of one bridge network."""
    link = nft.interface(bridge)
    found = [nft.Element("bridges", link), nft.Element("same", link + link)]
    if not icc:
        found.append(nft.Element("noicc", link))
    if internal:
        found.append(nft.Element("internal", link))
    for network in subnets:
        found.append(nft.link_subnet(f"local{network.version}", bridge, network))
        if masquerade and not internal:
            found += nft.subnet(f"masq{network.version}", network)
    return found
