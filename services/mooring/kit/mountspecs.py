"""Pure: what `-v`, `--mount` and `--tmpfs` say, read by Docker's rules and refused in its words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .errors import InvalidParameter, NotSupported
from .models.container import HostConfig, Mount, MountPoint
from .volumespecs import ImageMount, Volume, check_name, image_mount, volume_mount
from .volumespecs import clean as _clean

PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_LABELS = frozenset({"z", "Z"})
_CONSISTENCIES = frozenset({"consistent", "cached", "delegated", "default", ""})

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
    create_source: bool = True


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A tmpfs in the container; options as mount(8) takes them."""

    destination: str
    options: tuple[str, ...] = ()
    from_mounts: bool = False


Wanted = Bind | Tmpfs | Volume | ImageMount


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


def bind(spec: str) -> Bind | Volume:
    """One element of HostConfig.Binds, `source:destination[:options]` or only a destination."""
    parts = spec.split(":")
    if any(not part for part in parts) or len(parts) > 3:
        raise _invalid(spec)
    if len(parts) == 1:
        return Volume(_destination(spec, spec, "volume"))
    if len(parts) == 2 and _valid_mode(parts[1]):
        raise _invalid(spec)
    source, target = parts[0], parts[1]
    mode = parts[2] if len(parts) == 3 else ""
    if mode and not _valid_mode(mode):
        raise InvalidParameter(f"invalid mode: {mode}")
    options = mode.split(",") if mode else []
    propagation = next((option for option in options if option in PROPAGATIONS), "")
    if not source.startswith("/"):
        destination = _destination(spec, target, "volume")
        check_name(source)
        if propagation:
            reason = 'invalid mount config for type "volume": field BindOptions'
            raise _invalid(spec, f"{reason} must not be specified")
        return Volume(
            destination=destination,
            name=source,
            mode=mode,
            read_only="ro" in options,
            nocopy="nocopy" in options,
        )
    if "nocopy" in options:
        raise _invalid(
            spec, 'invalid mount config for type "bind": field VolumeOptions must not be specified'
        )
    return Bind(
        source=_clean(source),
        destination=_destination(spec, target, "bind"),
        mode=mode,
        read_only="ro" in options,
        propagation=propagation or "rprivate",
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


def mount(value: Mount) -> Wanted:
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
        case "volume":
            return volume_mount(value)
        case "image":
            return image_mount(value)
        case "npipe" | "cluster":
            raise NotSupported(f"mounts of type {value.type} are not supported yet: {value.target}")
    raise InvalidParameter(f'invalid mount config for type "{value.type}": mount type unknown')


def all_mounts(host: HostConfig, volumes: Iterable[str] = ()) -> list[Wanted]:
    """Every mount a container asks for, parents before children; no destination twice.

    volumes: what Config.Volumes declares; it gives way to whatever else is mounted there.
    """
    wanted: list[Wanted] = []
    for spec in host.binds or []:
        given = bind(spec)
        driver = host.volume_driver
        wanted.append(replace(given, driver=driver) if isinstance(given, Volume) else given)
    wanted += [mount(value) for value in host.mounts or []]
    wanted += [tmpfs(path, options) for path, options in (host.tmpfs or {}).items()]
    taken = set()
    for item in wanted:
        if item.destination in taken:
            raise InvalidParameter(f"Duplicate mount point: {item.destination}")
        taken.add(item.destination)
    for path in volumes:
        # `VOLUME data` of a Dockerfile is /data: there are images that say it so.
        destination = _destination(path, f"/{path}", "volume")
        if destination not in taken:
            taken.add(destination)
            wanted.append(Volume(destination, driver=host.volume_driver))
    wanted.sort(key=lambda item: item.destination.count("/"))
    return wanted


def volumes_from(spec: str) -> tuple[str, str]:
    """The container and the mode (or an empty string) of one element of VolumesFrom."""
    if not spec:
        raise InvalidParameter("volumes-from specification cannot be an empty string")
    container, _, mode = spec.partition(":")
    if ":" in spec:
        options = set(mode.split(","))
        if not _valid_mode(mode) or options & PROPAGATIONS or "nocopy" in options:
            raise InvalidParameter(f"invalid mode: {mode}")
    return container, mode


def point(wanted: Bind | Tmpfs) -> MountPoint:
    """A bind or tmpfs as the record keeps it, with what the OCI runtime is told."""
    if isinstance(wanted, Tmpfs):
        return MountPoint(
            type="tmpfs",
            destination=wanted.destination,
            rw="ro" not in wanted.options,
            hidden=not wanted.from_mounts,
            options=list(wanted.options),
        )
    options = ["rbind" if wanted.recursive else "bind", wanted.propagation]
    if wanted.read_only:
        # Docker makes submounts read-only too; `rro` is OCI's word for that.
        options.append("rro" if wanted.recursive and wanted.read_only_recursive else "ro")
    return MountPoint(
        type="bind",
        source=wanted.source,
        destination=wanted.destination,
        mode=wanted.mode,
        rw=not wanted.read_only,
        propagation=wanted.propagation,
        options=options,
        create_source=wanted.create_source,
    )
