"""Volumes: found by name, and which of them containers use."""

from __future__ import annotations

from mooring.gateway.schema.query import Filters, boolean_filter, has_labels
from mooring.kit.errors import NotFound
from mooring.kit.models.volume import VolumeRecord, VolumeState
from mooring.kit.store import Mirror, key_for

from .containers import ContainerViews
from .patterns import compile_pattern

NAMES = frozenset({"dangling", "driver", "label", "name"})


class VolumeViews:
    """The volumes that are ready; those being made or removed are not shown."""

    def __init__(self, mirror: Mirror[VolumeRecord], containers: ContainerViews) -> None:
        self.mirror = mirror
        self._containers = containers

    def find(self, name: str) -> VolumeRecord:
        """The volume of this name; NotFound."""
        entry = self.mirror.get(key_for(name))
        if entry is None or entry.record.state is not VolumeState.READY:
            raise NotFound(f"get {name}: no such volume")
        return entry.record

    def all(self) -> list[VolumeRecord]:
        """All of them, by name."""
        records = [entry.record for entry in self.mirror.values()]
        ready = [record for record in records if record.state is VolumeState.READY]
        return sorted(ready, key=lambda record: record.name)

    def users(self) -> dict[str, int]:
        """How many containers have each volume that is used."""
        found: dict[str, int] = {}
        for record in self._containers.newest_first():
            for name in {mount.name for mount in record.mounts if mount.type == "volume"}:
                found[name] = found.get(name, 0) + 1
        return found

    def select(self, given: Filters) -> list[VolumeRecord]:
        """Those that pass; InvalidParameter."""
        records = self.all()
        for name, values in given.items():
            match name:
                case "name":
                    patterns = [compile_pattern(value, "name") for value in values]
                    records = [r for r in records if any(p.search(r.name) for p in patterns)]
                case "driver":
                    records = [r for r in records if r.driver in values]
                case "label":
                    records = [r for r in records if has_labels(r.labels, values)]
                case "dangling":
                    wanted, used = boolean_filter(given, "dangling"), self.users()
                    records = [r for r in records if (r.name not in used) is wanted]
        return records
