"""What may follow what for networks, and for the networks of containers. Pure, like states.py."""

from __future__ import annotations

from mooring.kit import endpoints
from mooring.kit.errors import Conflict, EngineError, Forbidden
from mooring.kit.models.container import ContainerRecord, Event, State
from mooring.kit.models.network import (
    EndpointSettings,
    NetworkRecord,
    NetworkState,
    Progress,
    Rewiring,
)

from . import states
from .events import NetworkHappening
from .states import REMOVE_LIMIT, START_LIMIT, TOMBSTONE_AGE, Claim, advance

_AT_REST: dict[str, object] = {"owner": "", "deadline_ns": 0}


class UnderWay(Conflict):
    """A change that another command began has not ended."""


def network_event(record: NetworkRecord, action: str, event_id: str, time_ns: int) -> Event:
    """`create` or `destroy` of a network."""
    return Event(
        id=event_id,
        type="network",
        action=action,
        actor=record.id,
        attributes={"name": record.name, "type": record.driver},
        time_ns=time_ns,
    )


def _advance(record: NetworkRecord, now: int, action: str, **changes: object) -> NetworkRecord:
    changed = record.model_copy(update=changes)
    if action:
        serial = record.event_serial + 1
        event = network_event(changed, action, f"{record.id}.{serial}", now)
        changed.outbox = [*record.outbox, event]
        changed.event_serial = serial
    return changed


def creating(record: NetworkRecord, claim: Claim) -> NetworkRecord:
    """Claimed, and to be made on its host."""
    return record.model_copy(
        update={
            "progress": Progress.CREATING,
            "owner": claim.owner,
            "deadline_ns": claim.now + START_LIMIT,
            "command_id": claim.command,
            "created_ns": claim.now,
        }
    )


def created(record: NetworkRecord, now: int) -> NetworkRecord:
    """It is there on its host."""
    if record.progress is not Progress.CREATING:
        return record
    return _advance(record, now, "create", progress=Progress.ACTIVE, **_AT_REST)


def removing(record: NetworkRecord, claim: Claim) -> NetworkRecord:
    """From now on no start finds it."""
    if record.progress is not Progress.ACTIVE:
        return record
    return _advance(
        record,
        claim.now,
        "",
        progress=Progress.REMOVING,
        owner=claim.owner,
        deadline_ns=claim.now + REMOVE_LIMIT,
        command_id=claim.command,
    )


def kept(record: NetworkRecord) -> NetworkRecord:
    """The host refused to remove it."""
    if record.progress is not Progress.REMOVING:
        return record
    return _advance(record, 0, "", progress=Progress.ACTIVE, command_id="", **_AT_REST)


def refused(record: NetworkRecord, now: int) -> NetworkRecord:
    """The host could not make it: a tombstone, of one that was never seen."""
    if record.progress is not Progress.CREATING:
        return record
    return _entombed(record, now, "")


def removed(record: NetworkRecord, now: int) -> NetworkRecord:
    """A tombstone; its end is an event."""
    if record.progress is Progress.REMOVED:
        return record
    return _entombed(record, now, "destroy")


def _entombed(record: NetworkRecord, now: int, action: str) -> NetworkRecord:
    deadline = now + TOMBSTONE_AGE
    changes: dict[str, object] = {"owner": "", "deadline_ns": deadline}
    return _advance(record, now, action, progress=Progress.REMOVED, **changes)


def uses(record: ContainerRecord, name: str) -> bool:
    """Whether a container that runs, or is being started, is on a network."""
    if record.state not in states.LIVE:
        return False
    if record.state is State.STARTING:
        return name in record.networking
    return name in record.network.endpoints or name in record.rewiring


def in_use(network: NetworkRecord, users: list[ContainerRecord]) -> EngineError:
    """Docker's refusal to remove a network that containers are on."""
    names = ", ".join(f'name:"{user.name}" id:"{user.id[:12]}"' for user in users[:10])
    return Forbidden(
        f"error while removing network: network {network.name} id {network.id} "
        f"has active endpoints ({names})"
    )


# --- the networks of a container ---


def claim_rewiring(record: ContainerRecord, name: str, wanted: Rewiring) -> ContainerRecord:
    """Note a change that is about to be made on the host."""
    if name in record.rewiring:
        if record.rewiring[name].command == wanted.command:
            return record
        raise UnderWay(f"another change of network {name} of container {record.name} is under way")
    return record.model_copy(update={"rewiring": {**record.rewiring, name: wanted}})


def drop_rewiring(record: ContainerRecord, name: str, command: str) -> ContainerRecord:
    """The host refused."""
    found = record.rewiring.get(name)
    if found is None or found.command != command:
        return record
    left = {key: value for key, value in record.rewiring.items() if key != name}
    return record.model_copy(update={"rewiring": left})


def rewired(
    record: ContainerRecord, name: str, run: int, host: NetworkState | None, now: int
) -> ContainerRecord:
    """The host has made a change; host None: nothing runs any more that it could be made to."""
    wanted = record.rewiring.get(name)
    if wanted is None:
        return record
    changed = drop_rewiring(record, name, wanted.command)
    changed = with_network(changed, name, wanted.settings, wanted.command)
    if host is None or record.run != run or not record.pid:
        return changed
    before = record.network.endpoints.get(name)
    after = host.endpoints.get(name)
    happenings = []
    if wanted.settings is not None and after is not None and before is None:
        happenings.append(NetworkHappening("connect", name, after.network_id, after.driver))
    if wanted.settings is None and before is not None and after is None:
        happenings.append(NetworkHappening("disconnect", name, before.network_id, before.driver))
    return advance(changed, now, *happenings, network=host)


def is_misnamed(record: ContainerRecord) -> bool:
    """Whether a container that runs is found on its networks by a name that it had before."""
    return bool(record.pid) and any(
        point.dns_names and point.dns_names[0] != record.name
        for point in record.network.endpoints.values()
    )


def named(record: ContainerRecord, run: int, name: str) -> ContainerRecord:
    """The networks of a run know this name."""
    if record.run != run or not record.pid:
        return record
    return record.model_copy(update={"network": endpoints.known_as(record.network, name)})


def with_network(
    record: ContainerRecord, name: str, settings: EndpointSettings | None, command: str
) -> ContainerRecord:
    """What a container asks for, with a network more or (None) less."""
    networking = {key: value for key, value in record.networking.items() if key != name}
    if settings is not None:
        networking[name] = settings
    return record.model_copy(
        update={
            "networking": networking,
            "disconnected": not networking,
            "command_id": command,
        }
    )
