"""What `mooring uninstall --purge` takes away once nothing of the engine runs.

The engine has given most of it back by then, if there was one. Every step finds what there is by
itself, and is fine with nothing: a purge that was broken off is repeated.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from mooring.kit.cgroups import mount_points
from mooring.kit.config import Settings, parse_host
from mooring.kit.mounts import mounts

from .manager import ManagerError
from .settings import GROUP, SHIMS, SLICE

STATE = (
    "builds", "containers", "content", "downloads", "ingest", "layers", "nats", "network",
    "node-id", "secrets", "supervisor.lock", "trash", "volumes",
)  # fmt: skip
"""All that an engine makes in its state directory; what else is there is somebody else's."""
USERS = ("mooring-nats", "mooring-gateway", "mooring-lifecycle")
_SHALLOW = 3
"""So many parts a run directory's path has at least: one such as /run is not the engine's alone."""

Say = Callable[[str], None]


def purge(settings: Settings, say: Say) -> None:
    """Take everything away; ManagerError names what stays against that."""
    say("taking away cgroups, links and packet filter")
    remove_cgroups(settings.cgroup_root)
    remove_cgroups(f"/{SLICE}/{SHIMS}")
    _remove_network(settings, say)
    say(f"deleting {settings.state_dir} and {settings.run_dir}")
    left = remove_directories(settings)
    _remove_users(say)
    if left:
        raise ManagerError("not purged: " + "; ".join(left))


def remove_cgroups(path: str, mountinfo: bytes = b"") -> None:
    """Remove the empty cgroups at and below `path` in every hierarchy, and an empty one above.

    On version 2 systemd has done it; the controllers of version 1 are not all its affair.
    mountinfo: the text of /proc/self/mountinfo.
    """
    if not path.strip("/"):
        return
    for mount_point in mount_points(mountinfo):
        root = f"{mount_point}{path.rstrip('/')}"
        for folder, _, _ in os.walk(root, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(root))


def remove_directories(settings: Settings) -> list[str]:
    """Delete state and run directory, and sockets elsewhere; what could not go, in words."""
    _unmount(settings)
    if mounted := list(_mounts_below(settings)):
        # What is mounted there may be anything of the operator's.
        return [f"{path} is mounted" for path in mounted]
    left = _delete([settings.state_dir / name for name in STATE])
    left += _remove_empty(settings.state_dir)
    for host in settings.host:
        kind, address, _ = parse_host(host)
        if kind == "unix":
            Path(address).unlink(missing_ok=True)
    if len(settings.run_dir.parts) < _SHALLOW:
        return [*left, f"{settings.run_dir} is not the engine's alone"]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        left += _delete(list(settings.run_dir.iterdir()))
    return left + _remove_empty(settings.run_dir)


def _delete(paths: list[Path]) -> list[str]:
    # rm, as no depth is too much for it.
    command = ["rm", "-rf", "--one-file-system", "--", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()


def _remove_empty(directory: Path) -> list[str]:
    if not directory.exists():
        return []
    if names := sorted(os.listdir(directory)):
        return [f"{directory}/{name} is not the engine's" for name in names]
    try:
        if not os.path.ismount(directory):
            directory.resolve().rmdir()
        if directory.is_symlink():
            directory.unlink()
    except OSError as exc:
        return [str(exc)]
    return []


def _mounts_below(settings: Settings) -> Iterator[str]:
    """Mount points below the two directories, the last one made first."""
    roots = tuple(f"{path.resolve()}/" for path in (settings.state_dir, settings.run_dir))
    for mount in reversed(mounts()):
        if mount.path.startswith(roots):
            yield mount.path


def _unmount(settings: Settings) -> None:
    for path in list(_mounts_below(settings)):
        subprocess.run(["umount", "--lazy", "--", path], capture_output=True, check=False)


def _remove_network(settings: Settings, say: Say) -> None:
    from mooring.runtime.network import links, setup

    try:
        links.remove_marked(settings.instance)
        setup.remove(settings.bridge, settings.instance)
    except OSError as exc:
        say(f"packet filter or links: {exc}")


def _remove_users(say: Say) -> None:
    """The users and the group that systemd-sysusers has made."""
    for name in USERS:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            _tell(["userdel", name], say)
    for name in (*USERS, GROUP):
        with contextlib.suppress(KeyError):
            # userdel may have done it.
            grp.getgrnam(name)
            _tell(["groupdel", name], say)


def _tell(command: list[str], say: Say) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        say(f"there is no {command[0]} here: {command[1]} stays")
        return
    if done.returncode:
        say(done.stderr.strip())
