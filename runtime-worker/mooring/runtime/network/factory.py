"""The process that works in network namespaces, forked by the launcher.

It imports next to nothing that the launcher has not: each module would be memory of its own.

A sandbox is a network namespace with its interfaces up, addresses and routes. What names it is a
descriptor, not a mount: it is handed to the worker, and the kernel takes namespace, links and
routes away with the last descriptor or process. So a worker or a factory that is killed leaves
nothing behind.

Protocol, SOCK_SEQPACKET, JSON, one request at a time; every answer may be {"error", "errno"}:
  {"bridge", "address", "prefix", "gateway", "mtu"} -> {"mac", "link"}, SCM_RIGHTS [namespace]
      a sandbox of the default bridge, ready for use
  {"op": "blank"} -> {"link"}, SCM_RIGHTS [namespace]
      a sandbox with the end of a veth in it (eth0), connected to nothing yet
  {"op": "plug", "interfaces": [...], "gateways": {...}, "blank": LINK|null} [namespace]?
      -> {"macs": [...]}, SCM_RIGHTS [namespace] unless one was given
      see wiring.py, which carries it out
  {"op": "unplug", "interface", "gateways"} [namespace] -> {}
"""

from __future__ import annotations

import _socket as socket
import os

from mooring.shim import packets

from . import netlink, wiring
from .namespace import Inside, new_namespace


def mac_of(ip: bytes) -> bytes:
    """A locally administered MAC address that follows from the IPv4 address: no ARP surprises."""
    return b"\x02\x42" + ip


def link_name(ip: bytes) -> str:
    """The host's end of the veth of an address, at most 15 characters (IFNAMSIZ)."""
    return f"mrv{ip.hex()}"


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


class Factory:
    """Answers one request after the other."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._host = netlink.Route()

    def serve(self) -> None:
        """Until the worker's end of the socket closes."""
        space = socket.CMSG_SPACE(4 * 4)
        while True:
            packet, ancillary, _, _ = self._control.recvmsg(1 << 20, space)
            given = [
                int.from_bytes(rights[at : at + 4], "little")
                for _, _, rights in ancillary
                for at in range(0, len(rights), 4)
            ]
            if not packet:
                return
            try:
                answer, made = self.answer(packets.parse(packet), given)
            except Exception as exc:
                number = exc.errno if isinstance(exc, OSError) else 0
                known = isinstance(exc, OSError | ValueError)
                answer, made = {"error": str(exc) if known else repr(exc), "errno": number or 0}, -1
            finally:
                for descriptor in given:
                    os.close(descriptor)
            data = packets.dump(answer)
            if made >= 0:
                rights = made.to_bytes(4, "little")
                self._control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                os.close(made)
            else:
                self._control.send(data)

    def answer(self, request: dict[str, object], given: list[int]) -> tuple[dict[str, object], int]:
        """What to say, and the descriptor of a namespace to give or -1."""
        match request.get("op"):
            case None:
                namespace, mac, name = make(self._home, self._host, request)
                return {"mac": mac, "link": name}, namespace
            case "blank":
                namespace, name = wiring.blank(self._home, self._host)
                return {"link": name}, namespace
            case "plug":
                return self._plug(request, given)
            case "unplug":
                with Inside(self._home, given[0]) as inside:
                    wiring.unplug(inside, request)
                return {}, -1
        raise ValueError(f"the factory knows no operation {request.get('op')!r}")

    def _plug(self, request: dict[str, object], given: list[int]) -> tuple[dict[str, object], int]:
        if given:
            with Inside(self._home, given[0]) as inside:
                macs = wiring.plug(self._host, inside, given[0], request)
            # One that was prepared is the caller's already.
            return {"macs": macs}, -1
        namespace, first = new_namespace(self._home)
        first.close()
        try:
            with Inside(self._home, namespace) as inside:
                macs = wiring.plug(self._host, inside, namespace, request)
        except BaseException:
            os.close(namespace)
            raise
        return {"macs": macs}, namespace


def main(control: socket.socket) -> None:
    """Answer requests until the worker's end of the socket closes."""
    try:
        Factory(control).serve()
    except ConnectionError:
        pass  # The worker was killed before it had read an answer.
