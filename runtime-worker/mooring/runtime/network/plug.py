"""Endpoints put together: a sandbox for a start, one more network, one less."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mooring.kit import endpoints, faults
from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.network import Endpoint, EndpointSettings, NetworkState

from . import plan
from .client import FactoryClient, FactoryError
from .lan import Lan
from .links import index_of
from .wiring import new_link_name

logger = logging.getLogger(__name__)


class Blank(NamedTuple):
    """A namespace with a veth that is a port of nothing yet; it is gone when this is closed."""

    namespace: int
    link: str


@dataclass(slots=True)
class Member:
    """A container's place on one network: its addresses are claimed, its interface is not made."""

    name: str
    lan: Lan
    settings: EndpointSettings
    endpoint: Endpoint
    parent: int
    mtu: int

    @classmethod
    def claim(
        cls,
        name: str,
        lan: Lan,
        holder: str,
        settings: EndpointSettings,
        names: list[str],
        parent: int,
        mtu: int,
    ) -> Member:
        """Claim addresses; Forbidden or EngineError in Docker's words if they are not to be had."""
        endpoints.check_on(settings, lan.record)
        pairs = [endpoints.parse_link(text) for text in settings.links or ()]
        try:
            four, six = lan.claim(holder, settings)
            mac = settings.mac_address or (plan.mac_for(four) if four else _random_mac())
            lan.claim_mac(holder, mac)
        except BaseException:
            lan.release(holder)
            raise
        faults.point("runtime.network.claimed")
        endpoint = Endpoint(
            network_id=lan.record.id,
            endpoint_id=secrets.token_hex(32),
            driver=lan.record.driver,
            link=new_link_name() if lan.record.driver == "bridge" else "",
            gateway=lan.gateway(four) if four else "",
            ip_address=four,
            ip_prefix_len=lan.prefix(four) if four else 0,
            ipv6_gateway=lan.gateway(six) if six else "",
            global_ipv6_address=six,
            global_ipv6_prefix_len=lan.prefix(six) if six else 0,
            mac_address=mac,
            aliases=settings.aliases or [],
            dns_names=names,
            links={alias: target for target, alias in pairs},
            internal=lan.record.internal,
            gw_priority=settings.gw_priority,
        )
        return cls(name, lan, settings, endpoint, parent, mtu)

    def interface(self) -> dict[str, Any]:
        """What the factory is asked for."""
        return plan.interface(self.lan.record, self.settings, self.endpoint, self.parent, self.mtu)


class Plugs:
    """Asks the factory for interfaces; keeps some blank sandboxes once one was needed."""

    def __init__(self, client: Callable[[], FactoryClient], pool: int) -> None:
        self._client = client
        self._size = pool
        self._pool: deque[Blank] = deque()
        self._wanted = False
        self._filling: asyncio.Task[None] | None = None

    async def start(self, members: Sequence[Member]) -> tuple[int, NetworkState]:
        """A sandbox on these networks: the descriptor of its namespace, and what is in it."""
        state = NetworkState(sandbox_id=secrets.token_hex(32))
        for member in members:
            state = _with(state, member)
        state = plan.routed(state)
        blank = None
        if members[0].endpoint.interface == "eth0" and members[0].lan.record.driver == "bridge":
            self._wanted = True
            blank = self._take()
        if blank is not None:
            state.endpoints[members[0].name].link = blank.link
        request = {
            "op": "plug",
            "interfaces": [member.interface() for member in members],
            "gateways": plan.gateways(state),
            "blank": blank.link if blank else None,
            "fresh": True,
        }
        try:
            answer, made = await self._ask(request, [blank.namespace] if blank else [], members[0])
        except BaseException:
            if blank is not None:
                os.close(blank.namespace)
            raise
        for member, mac in zip(members, answer["macs"], strict=True):
            member.endpoint.mac_address = mac
        return blank.namespace if blank else made[0], state

    async def add(self, member: Member, state: NetworkState, namespace: str) -> NetworkState:
        """Plug a running sandbox into one more network."""
        changed = plan.routed(_with(state, member))
        request = {
            "op": "plug",
            "interfaces": [member.interface()],
            "gateways": plan.gateways(changed),
            "blank": None,
        }
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            answer, _ = await self._ask(request, [descriptor], member)
        finally:
            os.close(descriptor)
        member.endpoint.mac_address = answer["macs"][0]
        return changed

    async def take(self, name: str, state: NetworkState, namespace: str) -> NetworkState:
        """Unplug a running sandbox from a network."""
        endpoint = state.endpoints[name]
        left = {key: point for key, point in state.endpoints.items() if key != name}
        changed = plan.routed(state.model_copy(update={"endpoints": left, "dns": _has_dns(left)}))
        request = {
            "op": "unplug",
            "interface": endpoint.interface,
            "gateways": plan.gateways(changed),
        }
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._client().ask(request, [descriptor])
        except FactoryError as exc:
            raise EngineError(
                f"cannot take {endpoint.interface} out of a container: {exc}"
            ) from exc
        finally:
            os.close(descriptor)
        return changed

    def refill(self) -> None:
        """Prepare blank sandboxes in the background, if they are used."""
        if self._wanted and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill(), name="blank-sandboxes")

    async def close(self) -> None:
        """Give back what is prepared."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        while self._pool:
            os.close(self._pool.popleft().namespace)

    def _take(self) -> Blank | None:
        while self._pool:
            blank = self._pool.popleft()
            if index_of(blank.link):
                return blank
            logger.warning("the link %s of a prepared sandbox was gone", blank.link)
            os.close(blank.namespace)
        return None

    async def _fill(self) -> None:
        try:
            while len(self._pool) < self._size:
                answer, made = await self._client().ask({"op": "blank"})
                self._pool.append(Blank(made[0], answer["link"]))
        except EngineError as exc:
            logger.warning("cannot prepare sandboxes: %s", exc)

    async def _ask(
        self, request: dict[str, Any], given: list[int], member: Member
    ) -> tuple[dict[str, Any], list[int]]:
        try:
            return await self._client().ask(request, given)
        except FactoryError as exc:
            network = member.lan.record
            if exc.errno == _EOPNOTSUPP and network.driver != "bridge":
                raise InvalidParameter(
                    f"the kernel of this host has no {network.driver} interfaces"
                ) from exc
            raise EngineError(f"cannot connect to network {member.name}: {exc}") from exc


_EOPNOTSUPP = 95


def _with(state: NetworkState, member: Member) -> NetworkState:
    """The state with one more endpoint, whose interface gets its name here."""
    used = {point.interface for point in state.endpoints.values()}
    member.endpoint.interface = plan.interface_name(member.lan.record, member.settings, used)
    points = {**state.endpoints, member.name: member.endpoint}
    return state.model_copy(update={"endpoints": points, "dns": _has_dns(points)})


def _has_dns(points: dict[str, Endpoint]) -> bool:
    """Whether one of them is on a network of the user's, where names are served."""
    return any(name not in endpoints.PREDEFINED for name in points)


def _random_mac() -> str:
    return f"02:42:{secrets.token_bytes(4).hex(':')}"
