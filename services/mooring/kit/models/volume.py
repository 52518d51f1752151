"""Volumes: one record to a volume, and the commands about them."""

from __future__ import annotations

from enum import StrEnum

from .base import Done, Model, Request
from .container import MountPoint
from .image import ImageRecord


class VolumeState(StrEnum):
    """Where a volume is; only a ready one is shown."""

    CREATING = "creating"
    READY = "ready"
    REMOVING = "removing"


class VolumeRecord(Model):
    """A volume. Its key in the bucket is `kit.store.key_for` of its name. Times: ns, Unix."""

    version: int = 1
    name: str
    node: str
    mountpoint: str = ""
    driver: str = "local"
    created_ns: int = 0
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None
    state: VolumeState = VolumeState.CREATING
    owner: str = ""
    """The lifecycle replica that creates or removes it."""
    container: str = ""
    """Whose create an anonymous one is made in: without that container it is taken back."""
    claims: dict[str, int] = {}
    """Containers being created with it, and when each claimed it: see lifecycle/volumes.py."""


class CreateVolume(Request):
    """Create a volume, or find the one of that name."""

    name: str = ""
    driver: str = ""
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class VolumeCreated(Done):
    volume: VolumeRecord


class RemoveVolume(Request):
    name: str
    force: bool = False


class PruneVolumes(Request):
    """Remove what no container uses: anonymous volumes, or all."""

    all: bool = False
    labels: list[str] = []
    labels_not: list[str] = []


# --- to a runtime worker ---


class HostVolume(Model):
    name: str
    options: dict[str, str] | None = None


class PrepareVolumes(Request):
    """Make volumes on disk, and fill the empty ones among `mounts` with what the image has."""

    volumes: list[HostVolume] = []
    mounts: list[MountPoint] = []
    image: ImageRecord | None = None


class RemoveHostVolume(Request):
    name: str


class MeasureVolumes(Request):
    """How much is in volumes; those with a mount of their own count as -1."""

    names: list[str] = []


class VolumeSizes(Done):
    sizes: dict[str, int] = {}
    """Bytes, by name; a name without a directory is left out."""
