"""From what a user wrote to the container that is meant: full id, name, or unique prefix."""

from __future__ import annotations

from mooring.kit.errors import InvalidParameter, NotFound
from mooring.kit.models.container import ContainerRecord, State

from .engine import Engine
from .table import Row

_ID_LENGTH = 64


async def resolve(engine: Engine, text: str, command: str = "") -> Row[ContainerRecord]:
    """The container; NotFound, or InvalidParameter for a prefix of several.

    A command that is repeated finds again what it has changed, under whatever name it is now.
    """
    name = text.removeprefix("/")
    containers = engine.containers
    row = containers.get(engine.by_command.get(command, "")) if command else None
    if row is not None:
        return row
    row = containers.get(name) or containers.get(engine.by_name.get(name, ""))
    if row is None:
        row = _by_prefix(engine, name) or await _ask_the_store(engine, name)
    if row is None or row.record.state is State.REMOVED:
        raise NotFound(f"No such container: {text}")
    return row


def _by_prefix(engine: Engine, prefix: str) -> Row[ContainerRecord] | None:
    if not prefix:
        return None
    found = [
        row
        for row in engine.containers.rows()
        if row.key.startswith(prefix) and row.record.state is not State.REMOVED
    ]
    if len(found) > 1:
        raise InvalidParameter(f"multiple IDs found with provided prefix: {prefix}")
    return found[0] if found else None


async def _ask_the_store(engine: Engine, name: str) -> Row[ContainerRecord] | None:
    """Another replica may have created it a moment ago."""
    key = name if len(name) == _ID_LENGTH else await engine.names.holder(name)
    if not key:
        return None
    try:
        row = await engine.containers.fetch(key)
    except NotFound:
        return None
    return row if row.key == name or row.record.name == name else None
