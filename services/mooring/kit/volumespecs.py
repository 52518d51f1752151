"""Pure: volumes and images as mounts, and the options of local volumes, by Docker's rules."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import InvalidParameter, NotFound
from .models.container import Mount

LOCAL = "local"
ANONYMOUS = "com.docker.volume.anonymous"
"""The label of a volume that nobody named."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_LONGEST_NAME = 255
_OPTIONS = frozenset({"type", "o", "device", "size"})
_NEEDED = {"device": ("type",), "type": ("device",), "o": ("device", "type")}


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume in the container; without a name it is one of the container's own."""

    destination: str
    name: str = ""
    mode: str = ""
    read_only: bool = False
    nocopy: bool = False
    subpath: str = ""
    driver: str = ""
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageMount:
    """The files of an image, read-only; source is a reference or an id."""

    destination: str
    source: str
    subpath: str = ""


def clean(path: str) -> str:
    """A container's path, absolute, without `.`, `..` and needless slashes."""
    # posixpath.normpath keeps a leading double slash.
    return "/" + posixpath.normpath(path).lstrip("/")


def check_name(name: str) -> None:
    """InvalidParameter for what can't be the name of a volume."""
    if len(name) == 1:
        raise InvalidParameter(
            f"create {name}: volume name is too short, names should be at least two alphanumeric"
            " characters"
        )
    if not _NAME.match(name) or len(name) > _LONGEST_NAME:
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory,'
            " use absolute path"
        )


def check_driver(name: str, driver: str) -> None:
    """NotFound for any driver but `local`."""
    if driver not in ("", LOCAL):
        raise NotFound(
            f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found'
        )


def check_options(name: str, options: Mapping[str, str]) -> None:
    """InvalidParameter for what the local driver does not know or can't do."""
    for key in options:
        if key not in _OPTIONS:
            raise InvalidParameter(f'create {name}: invalid option: "{key}"')
    if "size" in options:
        raise InvalidParameter(f"create {name}: quota size requested but no quota support")
    for key, needed in _NEEDED.items():
        for other in needed:
            if key in options and other not in options:
                raise InvalidParameter(f'create {name}: missing required option: "{other}"')


def _texts(value: object, wrong: InvalidParameter) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise wrong
    return {str(key): text for key, text in value.items()}


def volume_mount(mount: Mount) -> Volume:
    """One element of HostConfig.Mounts of the type volume."""

    def wrong(reason: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "volume": {reason}')

    if mount.bind_options is not None:
        raise wrong("field BindOptions must not be specified")
    if mount.tmpfs_options is not None:
        raise wrong("field TmpfsOptions must not be specified")
    if mount.image_options is not None:
        raise wrong("field ImageOptions must not be specified")
    if mount.source:
        check_name(mount.source)
    options = mount.volume_options or {}
    nocopy, subpath = options.get("NoCopy", False), options.get("Subpath") or ""
    if not isinstance(nocopy, bool):
        raise wrong(f"invalid NoCopy: {nocopy!r}")
    if not isinstance(subpath, str):
        raise wrong(f"invalid Subpath: {subpath!r}")
    driver = options.get("DriverConfig") or {}
    if not isinstance(driver, dict) or not isinstance(driver.get("Name") or "", str):
        raise wrong("invalid DriverConfig")
    if subpath and not mount.source:
        raise wrong("must not set Subpath when using anonymous volumes")
    return Volume(
        destination=clean(mount.target),
        name=mount.source,
        read_only=mount.read_only,
        nocopy=nocopy,
        subpath=check_subpath(subpath, "volume"),
        driver=driver.get("Name") or "",
        options=_texts(driver.get("Options"), wrong("invalid driver options")),
        labels=_texts(options.get("Labels"), wrong("invalid labels")),
    )


def image_mount(mount: Mount) -> ImageMount:
    """One element of HostConfig.Mounts of the type image."""

    def wrong(reason: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "image": {reason}')

    for given, name in (
        (mount.bind_options, "BindOptions"),
        (mount.tmpfs_options, "TmpfsOptions"),
        (mount.volume_options, "VolumeOptions"),
    ):
        if given is not None:
            raise wrong(f"field {name} must not be specified")
    if not mount.source:
        raise wrong("field Source must not be empty")
    subpath = (mount.image_options or {}).get("Subpath") or ""
    if not isinstance(subpath, str):
        raise wrong(f"invalid Subpath: {subpath!r}")
    return ImageMount(clean(mount.target), mount.source, check_subpath(subpath, "image"))


def check_subpath(subpath: str, kind: str) -> str:
    """A path below a volume or image, cleaned; InvalidParameter for one that leads out."""
    if not subpath:
        return ""
    cleaned = posixpath.normpath(subpath)
    if subpath.startswith("/") or cleaned == ".." or cleaned.startswith("../"):
        raise InvalidParameter(
            f'invalid mount config for type "{kind}": subpath must be a relative path within the'
            f" {kind}"
        )
    return "" if cleaned == "." else cleaned
