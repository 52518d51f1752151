"""Which containers use which volumes, kept from the records of the containers."""

from __future__ import annotations

from mooring.kit.models.container import ContainerRecord, State

from .table import Table


class VolumeUsers:
    """An index over the containers that are not removed."""

    def __init__(self, containers: Table[ContainerRecord]) -> None:
        self._users: dict[str, dict[str, None]] = {}
        self._containers = containers
        containers.watch(self._changed)

    def of(self, volume: str, claims: dict[str, int], horizon: int) -> list[str]:
        """The ids of its users, with those that are being created: claims younger than horizon."""
        users = dict(self._users.get(volume, {}))
        for container, claimed_ns in claims.items():
            if claimed_ns > horizon and self._containers.get(container) is None:
                users[container] = None
        return list(users)

    def _changed(self, key: str, old: ContainerRecord | None, new: ContainerRecord | None) -> None:
        before, after = _volumes(old), _volumes(new)
        for name in before - after:
            users = self._users.get(name, {})
            users.pop(key, None)
            if not users:
                self._users.pop(name, None)
        for name in after - before:
            self._users.setdefault(name, {})[key] = None


def _volumes(record: ContainerRecord | None) -> set[str]:
    if record is None or record.state is State.REMOVED:
        return set()
    return {mount.name for mount in record.mounts if mount.type == "volume"}
