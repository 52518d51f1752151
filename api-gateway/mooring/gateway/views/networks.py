"""Networks: found by name, id or prefix, listed by Docker's filters."""

from __future__ import annotations

from mooring.gateway.schema.query import Filters, boolean_filter, has_labels
from mooring.kit.endpoints import PREDEFINED
from mooring.kit.errors import InvalidParameter, NotFound
from mooring.kit.models.network import NetworkRecord, Progress
from mooring.kit.store import Mirror

from .patterns import compile_pattern

FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})


class NetworkViews:
    """The networks of the engine; those that are being made or removed are not shown."""

    def __init__(self, mirror: Mirror[NetworkRecord]) -> None:
        self.mirror = mirror

    def all(self) -> list[NetworkRecord]:
        """Every network, oldest first."""
        records = [entry.record for entry in self.mirror.values()]
        return sorted(
            (record for record in records if record.progress is Progress.ACTIVE),
            key=lambda record: record.created_ns,
        )

    def find(self, text: str) -> NetworkRecord:
        """A network by id, name or unique prefix of its id; NotFound, InvalidParameter."""
        records = self.all()
        for record in records:
            if text in (record.id, record.name):
                return record
        matching = [record for record in records if text and record.id.startswith(text)]
        if len(matching) > 1:
            raise InvalidParameter(
                f"network {text} is ambiguous ({len(matching)} matches found on ID)"
            )
        if not matching:
            raise NotFound(f"network {text} not found")
        return matching[0]

    def ids(self) -> dict[str, str]:
        """Ids by name."""
        return {record.name: record.id for record in self.all()}


def select(records: list[NetworkRecord], given: Filters, used: set[str]) -> list[NetworkRecord]:
    """The networks that pass every filter; used: the ids of those that containers are on."""
    return [record for record in records if _passes(record, given, used)]


def _passes(record: NetworkRecord, given: Filters, used: set[str]) -> bool:
    for key, values in given.items():
        match key:
            case "name":
                passes = any(compile_pattern(value, "name").search(record.name) for value in values)
            case "id":
                passes = any(record.id.startswith(value) for value in values)
            case "driver":
                passes = record.driver in values
            case "scope":
                passes = record.scope in values
            case "label":
                passes = has_labels(record.labels, values)
            case "type":
                passes = _type(record) in _types(values)
            case _:
                dangling = record.name not in PREDEFINED and record.id not in used
                passes = boolean_filter(given, "dangling") is dangling
        if not passes:
            return False
    return True


def _type(record: NetworkRecord) -> str:
    return "builtin" if record.name in PREDEFINED else "custom"


def _types(values: list[str]) -> list[str]:
    for value in values:
        if value not in ("builtin", "custom"):
            raise InvalidParameter(f"invalid filter: 'type'='{value}'")
    return values
