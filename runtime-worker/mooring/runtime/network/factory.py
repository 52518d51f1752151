"""The process that makes sandboxes ahead of time. Standard library only, forked by the launcher.

A sandbox is a network namespace with lo and eth0 up, an address and a default route; its veth's
other end is a port of the bridge. What names it is a descriptor, not a mount: it is handed to the
worker, and the kernel takes namespace, veth and routes away with the last descriptor or process.
So a worker or a factory that is killed leaves nothing behind.

Protocol, SOCK_SEQPACKET, JSON: {"bridge", "address", "prefix", "gateway", "mtu"}
-> {"mac", "link"} with SCM_RIGHTS [namespace], or {"error"}.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket

from . import netlink

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mac_of(ip: bytes) -> bytes:
    """A locally administered MAC address that follows from the IPv4 address: no ARP surprises."""
    return b"\x02\x42" + ip


def link_name(ip: bytes) -> str:
    """The host's end of the veth of an address, at most 15 characters (IFNAMSIZ)."""
    return f"mrv{ip.hex()}"


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


def make(home: int, host: netlink.Route, request: dict[str, object]) -> tuple[int, str, str]:
    """One sandbox: its namespace's descriptor, MAC address and the host's link name."""
    ip = socket.inet_aton(str(request["address"]))
    gateway = socket.inet_aton(str(request["gateway"]))
    mtu, prefix = int(str(request["mtu"])), int(str(request["prefix"]))
    master = socket.if_nametoindex(str(request["bridge"]))
    mac, name = mac_of(ip), link_name(ip)
    create = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    namespace, inside = new_namespace(home)
    try:
        pair = netlink.veth(name, master, mtu, "eth0", mac, namespace)
        host.ask((netlink.RTM_NEWLINK, create, pair))
        up = netlink.IFF_UP
        inside.ask(
            (netlink.RTM_NEWLINK, 0, netlink.link(1, up, up)),
            (netlink.RTM_NEWADDR, create, netlink.address(2, ip, prefix)),
            (netlink.RTM_NEWLINK, 0, netlink.link(2, up, up)),
            (netlink.RTM_NEWROUTE, create, netlink.default_route(gateway, 2)),
        )
    except BaseException:
        os.close(namespace)
        raise
    finally:
        inside.close()
    return namespace, ":".join(f"{byte:02x}" for byte in mac), name


def main(control: socket.socket) -> None:
    """Answer requests until the worker's end of the socket closes."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    host = netlink.Route()
    while packet := control.recv(65536):
        try:
            namespace, mac, name = make(home, host, json.loads(packet))
        except (OSError, ValueError, KeyError) as exc:
            control.send(json.dumps({"error": str(exc)}).encode())
            continue
        answer = json.dumps({"mac": mac, "link": name}).encode()
        socket.send_fds(control, [answer], [namespace])
        os.close(namespace)
