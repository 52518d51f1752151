"""Pure: the variables by which a legacy link tells a container of another one (`DB_PORT_…`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mooring.kit.models.container import ContainerConfig
from mooring.kit.ports import exposed

_OWN = ("HOME", "PATH")
"""Variables that every container has of its own: not told."""
_RANGE = 3
"""So many ports in a row are told as a range as well."""


def variables(parent: str, alias: str, address: str, config: ContainerConfig) -> dict[str, str]:
    """What the container `parent` is told of the one that it knows as `alias`, as Docker does.

    config: of the other one, with what its image says. Its first port is the link's own.
    """
    prefix = alias.upper().replace("-", "_")
    found = {f"{prefix}_NAME": f"/{parent}/{alias}"}
    ports = exposed(config)
    if ports:
        port, protocol = min(ports, key=lambda each: (each[0], each[1] != "tcp"))
        found[f"{prefix}_PORT"] = f"{protocol}://{address}:{port}"
    for port, protocol in ports:
        key = f"{prefix}_PORT_{port}_{protocol.upper()}"
        found |= {
            key: f"{protocol}://{address}:{port}",
            f"{key}_ADDR": address,
            f"{key}_PORT": str(port),
            f"{key}_PROTO": protocol,
        }
    for first, last, protocol in _ranges(ports):
        key = f"{prefix}_PORT_{first}_{protocol.upper()}"
        found |= {
            f"{key}_START": f"{protocol}://{address}:{first}",
            f"{key}_PORT_START": str(first),
            f"{key}_END": f"{protocol}://{address}:{last}",
            f"{key}_PORT_END": str(last),
        }
    for variable in config.env or ():
        name, equals, value = variable.partition("=")
        if equals and name not in _OWN:
            found[f"{prefix}_ENV_{name}"] = value
    return found


def _ranges(ports: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    """First, last and protocol of every row of ports that is long enough."""
    for protocol in dict.fromkeys(name for _, name in ports):
        row: list[int] = []
        for port in [*(number for number, name in ports if name == protocol), 0]:
            if row and port != row[-1] + 1:
                if len(row) >= _RANGE:
                    yield row[0], row[-1], protocol
                row = []
            row.append(port)
