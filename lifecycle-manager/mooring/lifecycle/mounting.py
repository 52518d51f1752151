"""From what a container asks for to its mounts: whose volumes, which images, made by whom."""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass, field

from mooring.kit import mountspecs
from mooring.kit.errors import Conflict, InvalidParameter, NotFound
from mooring.kit.models.container import ContainerConfig, HostConfig, MountPoint, State
from mooring.kit.models.volume import VolumeRecord
from mooring.kit.mountspecs import Bind, Tmpfs
from mooring.kit.volumespecs import (
    ANONYMOUS,
    LOCAL,
    ImageMount,
    Volume,
    check_driver,
    check_name,
    check_options,
)

from .engine import Engine
from .find_image import find_image
from .volumes import VolumeHandlers


@dataclass(slots=True)
class Mounting:
    """The mounts of a container that is being created, and the volumes that they need."""

    mounts: list[MountPoint] = field(default_factory=list)
    volumes: list[VolumeRecord] = field(default_factory=list)


def resolve(
    engine: Engine, volumes: VolumeHandlers, container: str, node: str,
    config: ContainerConfig, host: HostConfig,
) -> Mounting:  # fmt: skip
    """All mounts, parents first; NotFound for an image or a driver, InvalidParameter for others."""
    wanted = mountspecs.all_mounts(host, config.volumes or ())
    found: dict[str, MountPoint] = {}
    result = Mounting()
    for spec in host.volumes_from or ():
        for point in _volumes_from(engine, spec):
            found[point.destination] = point
            if point.type == "volume":
                known = volumes.find(point.name)
                if known is None:
                    raise NotFound(f"get {point.name}: no such volume")
                result.volumes.append(known.model_copy(update={"container": ""}))
    declared = _declared(config, host)
    for item in wanted:
        if item.destination in declared and item.destination in found:
            continue
        if isinstance(item, Bind | Tmpfs):
            point = mountspecs.point(item)
        elif isinstance(item, ImageMount):
            image = find_image(engine, item.source)
            point = MountPoint(
                type="image",
                source=item.source,
                destination=item.destination,
                rw=False,
                image_id=image.id,
                subpath=item.subpath,
            )
        else:
            plain = item.destination in declared
            record = _volume(volumes, container, node, item)
            point = _volume_point(item, record, declared=plain)
            result.volumes.append(record)
        found[point.destination] = point
    result.mounts = sorted(found.values(), key=lambda point: point.destination.count("/"))
    used = {point.name for point in result.mounts}
    unique = {record.name: record for record in result.volumes if record.name in used}
    result.volumes = list(unique.values())
    return result


def _declared(config: ContainerConfig, host: HostConfig) -> set[str]:
    """Where Config.Volumes has a volume, and nothing else is asked for."""
    asked = {item.destination for item in mountspecs.all_mounts(host)}
    declared = ("/" + posixpath.normpath(path).lstrip("/") for path in config.volumes or ())
    return {path for path in declared if path not in asked}


def _volume(volumes: VolumeHandlers, container: str, node: str, item: Volume) -> VolumeRecord:
    name = item.name or hashlib.sha256(f"{container} {item.destination}".encode()).hexdigest()
    check_driver(name, item.driver)
    check_name(name)
    known = volumes.find(name) if item.name else None
    if known is not None:
        if known.node != node:
            raise Conflict(f"volume {name} is on another host than the container")
        return known
    check_options(name, item.options)
    labels = dict(item.labels)
    if not item.name:
        labels[ANONYMOUS] = ""
    record = volumes.record(name, node, labels or None, item.options)
    # A named one stays, whatever becomes of the container.
    return record.model_copy(update={"container": "" if item.name else container})


def _volume_point(item: Volume, record: VolumeRecord, *, declared: bool) -> MountPoint:
    options = ["rbind", "rprivate"]
    if item.read_only:
        options.append("ro")
    return MountPoint(
        type="volume",
        name=record.name,
        source=record.mountpoint,
        destination=item.destination,
        driver=LOCAL,
        mode="" if declared else item.mode or "z",
        rw=not item.read_only,
        options=options,
        anonymous=not item.name,
        nocopy=item.nocopy,
        subpath=item.subpath,
    )


def _volumes_from(engine: Engine, spec: str) -> list[MountPoint]:
    name, mode = mountspecs.volumes_from(spec)
    plain = name.removeprefix("/")
    row = engine.containers.get(plain) or engine.containers.get(engine.by_name.get(plain, ""))
    if row is None:
        matching = [r for r in engine.containers.rows() if r.key.startswith(plain)]
        row = matching[0] if len(matching) == 1 else None
    if row is None or row.record.state is State.REMOVED:
        # Not NotFound: clients take that for a missing image, and pull.
        raise InvalidParameter(f"No such container: {name}")
    points = []
    for point in row.record.mounts:
        if point.hidden:
            continue
        # Its own copy has been made, and in its container it stays.
        changes: dict[str, object] = {"nocopy": True}
        if point.rw and "ro" in mode.split(","):
            changes |= {"rw": False, "options": [*point.options, "ro"]}
        points.append(point.model_copy(update=changes))
    return points
