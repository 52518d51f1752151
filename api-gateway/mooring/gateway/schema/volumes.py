"""Volumes in the API's JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from mooring.kit.models.volume import VolumeRecord

from .texts import rfc3339

_SECOND = 1_000_000_000


class CreateBody(BaseModel):
    """The body of `POST /volumes/create`."""

    Name: str = ""
    Driver: str = ""
    DriverOpts: dict[str, str] | None = None
    Labels: dict[str, str] | None = None


def volume(record: VolumeRecord) -> dict[str, Any]:
    """A volume as it is listed and inspected."""
    return {
        # Docker shows whole seconds here.
        "CreatedAt": rfc3339(record.created_ns // _SECOND * _SECOND),
        "Driver": record.driver,
        "Labels": record.labels,
        "Mountpoint": record.mountpoint,
        "Name": record.name,
        "Options": record.options,
        "Scope": "local",
    }
