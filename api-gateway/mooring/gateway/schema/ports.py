"""Published ports as `docker ps`, `docker port` and `docker inspect` show them."""

from __future__ import annotations

import contextlib
from typing import Any

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import ContainerRecord
from mooring.kit.ports import exposed


def settings(record: ContainerRecord) -> dict[str, Any]:
    """NetworkSettings.Ports: what is published, and null for what is exposed only."""
    if not record.network.endpoints:
        return {}
    found: dict[str, Any] = {}
    # An image may say anything: what is no port is not shown.
    with contextlib.suppress(InvalidParameter):
        found |= {f"{port}/{protocol}": None for port, protocol in exposed(record.config)}
    for name, published in record.network.ports.items():
        found[name] = [
            {"HostIp": item.host_ip, "HostPort": str(item.host_port)} for item in published
        ]
    return found


def listed(record: ContainerRecord) -> list[dict[str, Any]]:
    """Ports of the list: one element to each address of the host."""
    found: list[dict[str, Any]] = []
    for name, published in settings(record).items():
        port, _, protocol = name.partition("/")
        private = {"PrivatePort": int(port), "Type": protocol}
        if not published:
            found.append(private)
        for item in published or ():
            found.append({"IP": item["HostIp"], "PublicPort": int(item["HostPort"]), **private})
    return found
