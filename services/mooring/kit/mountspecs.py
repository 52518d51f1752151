"""Pure: what `-v`, `--mount` and `--tmpfs` say, read by Docker's rules and refused in its words."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import InvalidParameter, NotSupported
from .models.container import HostConfig, Mount

PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_LABELS = frozenset({"z", "Z"})
_CONSISTENCIES = frozenset({"consistent", "cached", "delegated", "default", ""})
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")

# What mount(2) takes as a flag; all else of a tmpfs's options is data and must be one of these.
_TMPFS_FLAGS = frozenset(
    [
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
    ]
)
_TMPFS_DATA = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the host in the container. mode is the user's text for inspect."""

    source: str
    destination: str
    mode: str = ""
    read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    read_only_recursive: bool = True
    force_recursive: bool = False
    create_source: bool = True


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A tmpfs in the container; options as mount(8) takes them."""

    destination: str
    options: tuple[str, ...] = ()
    from_mounts: bool = False


def _clean(path: str) -> str:
    # posixpath.normpath keeps a leading double slash.
    return "/" + posixpath.normpath(path).lstrip("/")


def _invalid(spec: str, reason: str = "") -> InvalidParameter:
    return InvalidParameter(
        f"invalid volume specification: '{spec}'" + (f": {reason}" if reason else "")
    )


def _valid_mode(mode: str) -> bool:
    if mode == "":
        return False
    counts = {"access": 0, "label": 0, "propagation": 0, "copy": 0, "consistency": 0}
    for option in mode.split(","):
        if option in ("ro", "rw"):
            counts["access"] += 1
        elif option in _LABELS:
            counts["label"] += 1
        elif option in PROPAGATIONS:
            counts["propagation"] += 1
        elif option == "nocopy":
            counts["copy"] += 1
        elif option in _CONSISTENCIES:
            counts["consistency"] += 1
        else:
            return False
    return max(counts.values()) <= 1


def _destination(spec: str, path: str, type_: str) -> str:
    problem = ""
    if not path.startswith("/"):
        problem = f"invalid mount path: '{path}' mount path must be absolute"
    elif _clean(path) == "/":
        problem = "invalid specification: destination can't be '/'"
    if problem:
        raise _invalid(spec, f'invalid mount config for type "{type_}": {problem}')
    return _clean(path)


def bind(spec: str) -> Bind:
    """One element of HostConfig.Binds, `source:destination[:options]`."""
    parts = spec.split(":")
    if any(not part for part in parts) or len(parts) > 3:
        raise _invalid(spec)
    if len(parts) == 1:
        raise NotSupported(f"volumes are not supported yet: {spec}")
    if len(parts) == 2 and _valid_mode(parts[1]):
        raise _invalid(spec)
    source, target = parts[0], parts[1]
    mode = parts[2] if len(parts) == 3 else ""
    if mode and not _valid_mode(mode):
        raise InvalidParameter(f"invalid mode: {mode}")
    if not source.startswith("/"):
        _destination(spec, target, "volume")
        if not _VOLUME_NAME.match(source):
            raise InvalidParameter(
                f'create {source}: "{source}" includes invalid characters for a local volume name,'
                ' only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host'
                " directory, use absolute path"
            )
        raise NotSupported(f"volumes are not supported yet: {spec}")
    options = mode.split(",") if mode else []
    if "nocopy" in options:
        raise _invalid(
            spec, 'invalid mount config for type "bind": field VolumeOptions is not used'
        )
    return Bind(
        source=_clean(source),
        destination=_destination(spec, target, "bind"),
        mode=mode,
        read_only="ro" in options,
        propagation=next((option for option in options if option in PROPAGATIONS), "rprivate"),
    )


def tmpfs(destination: str, options: str) -> Tmpfs:
    """One element of HostConfig.Tmpfs: a path and its comma-separated options."""
    if not destination.startswith("/"):
        raise InvalidParameter(
            f"invalid mount config for type \"tmpfs\": invalid mount path: '{destination}'"
            " mount path must be absolute"
        )
    given = [option for option in options.split(",") if option]
    for option in given:
        key, equals, _ = option.partition("=")
        if key not in (_TMPFS_DATA if equals else _TMPFS_FLAGS):
            raise InvalidParameter(f'invalid tmpfs option ["{option}"]')
    # The user's word wins over the default that says the opposite.
    defaults = [
        flag
        for flag, opposite in (("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev"))
        if opposite not in given and flag not in given
    ]
    return Tmpfs(_clean(destination), (*defaults, *given))


def _bool(options: dict[str, object], key: str) -> bool:
    value = options.get(key, False)
    if not isinstance(value, bool):
        raise InvalidParameter(f"invalid mount option {key}: {value!r}")
    return value


def _bind_mount(mount: Mount) -> Bind:
    def wrong(reason: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "bind": {reason}')

    if mount.volume_options is not None:
        raise wrong("field VolumeOptions must not be specified")
    if mount.tmpfs_options is not None:
        raise wrong("field TmpfsOptions must not be specified")
    if not mount.source:
        raise wrong("field Source must not be empty")
    if not mount.source.startswith("/"):
        raise wrong(f"invalid mount path: '{mount.source}' mount path must be absolute")
    options = mount.bind_options or {}
    propagation = options.get("Propagation") or "rprivate"
    if propagation not in PROPAGATIONS:
        raise wrong(f"invalid propagation mode: {propagation}")
    plain, forced = _bool(options, "ReadOnlyNonRecursive"), _bool(options, "ReadOnlyForceRecursive")
    if (plain or forced) and not mount.read_only:
        raise wrong("read-only options need ReadOnly")
    if plain and forced:
        raise wrong("ReadOnlyNonRecursive and ReadOnlyForceRecursive contradict each other")
    return Bind(
        source=_clean(mount.source),
        destination=_clean(mount.target),
        read_only=mount.read_only,
        propagation=propagation,
        recursive=not _bool(options, "NonRecursive"),
        read_only_recursive=not plain,
        force_recursive=forced,
        create_source=_bool(options, "CreateMountpoint"),
    )


def _tmpfs_mount(mount: Mount) -> Tmpfs:
    def wrong(reason: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "tmpfs": {reason}')

    if mount.bind_options is not None:
        raise wrong("field BindOptions must not be specified")
    if mount.volume_options is not None:
        raise wrong("field VolumeOptions must not be specified")
    if mount.source:
        raise wrong("field Source must not be specified")
    options = mount.tmpfs_options or {}
    size, mode = options.get("SizeBytes") or 0, options.get("Mode") or 0
    if not isinstance(size, int) or size < 0:
        raise wrong(f"invalid SizeBytes: {size}")
    if not isinstance(mode, int) or mode < 0 or mode > 0o7777:
        raise wrong(f"invalid Mode: {mode}")
    flags = ["noexec", "nosuid", "nodev"]
    for item in options.get("Options") or []:
        words = [str(word) for word in item] if isinstance(item, list) else []
        if words == ["exec"]:
            flags.remove("noexec")
        elif words != ["noexec"]:
            raise wrong(f"invalid option: {item}")
    if mount.read_only:
        flags.append("ro")
    if size:
        flags.append(f"size={size}")
    if mode:
        flags.append(f"mode={mode:o}")
    return Tmpfs(_clean(mount.target), tuple(flags), from_mounts=True)


def mount(value: Mount) -> Bind | Tmpfs:
    """One element of HostConfig.Mounts."""
    if not value.target:
        raise InvalidParameter(
            f'invalid mount config for type "{value.type}": field Target must not be empty'
        )
    if not value.target.startswith("/"):
        raise InvalidParameter(
            f"invalid mount config for type \"{value.type}\": invalid mount path: '{value.target}'"
            " mount path must be absolute"
        )
    if _clean(value.target) == "/":
        raise InvalidParameter(
            f'invalid mount config for type "{value.type}": '
            "invalid specification: destination can't be '/'"
        )
    if value.consistency not in _CONSISTENCIES:
        raise InvalidParameter(f"invalid mount consistency: {value.consistency}")
    match value.type:
        case "bind":
            return _bind_mount(value)
        case "tmpfs":
            return _tmpfs_mount(value)
        case "volume" | "npipe" | "cluster" | "image":
            raise NotSupported(f"mounts of type {value.type} are not supported yet: {value.target}")
    raise InvalidParameter(f'mount type unknown: "{value.type}"')


def all_mounts(host: HostConfig, volumes: Iterable[str] = ()) -> list[Bind | Tmpfs]:
    """Every mount a container asks for, parents before children; no destination twice."""
    wanted: list[Bind | Tmpfs] = [bind(spec) for spec in host.binds or []]
    wanted += [mount(value) for value in host.mounts or []]
    wanted += [tmpfs(path, options) for path, options in (host.tmpfs or {}).items()]
    taken = set()
    for item in wanted:
        if item.destination in taken:
            raise InvalidParameter(f"Duplicate mount point: {item.destination}")
        taken.add(item.destination)
    # A volume that an image declares gives way to whatever the user mounts there.
    for path in volumes:
        if _clean(path) not in taken:
            raise NotSupported(f"volumes are not supported yet: {path}")
    wanted.sort(key=lambda item: item.destination.count("/"))
    return wanted
