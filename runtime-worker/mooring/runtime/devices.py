"""Device nodes of the host, as a container is given them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import HostConfig
from mooring.kit.resources import device_permissions, device_rule

from . import defaults

# What below /dev is no device of the host's, or is the container's own business.
_NOT_SHARED = frozenset({"/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.udev"})


def number(path: str) -> tuple[int, int]:
    """(major, minor) of a device node; InvalidParameter if it is none."""
    device = _node(path, path)
    return device["major"], device["minor"]


def chosen(host: HostConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`linux.devices` and `linux.resources.devices` for a container's options."""
    if host.privileged:
        nodes = [
            node for node in _walk("/dev", "/dev") if node["path"] not in defaults.DEFAULT_DEVICES
        ]
        return nodes, [defaults.ALLOW_ALL_DEVICES]
    nodes, rules = [], list(defaults.DEVICE_RULES)
    for wanted in host.devices or []:
        inside = wanted.path_in_container or wanted.path_on_host
        for node in _gather(wanted.path_on_host, inside):
            nodes.append(node)
            access = device_permissions(wanted)
            rules.append(
                {
                    "allow": True,
                    "type": node["type"],
                    "major": node["major"],
                    "minor": node["minor"],
                    "access": access,
                }
            )
    rules += [device_rule(rule) for rule in host.device_cgroup_rules or []]
    return nodes, rules


def _gather(path: str, inside: str) -> Iterator[dict[str, Any]]:
    """One node, or all below a directory, as `--device /dev/snd` means it."""
    if os.path.isdir(path):
        yield from _walk(os.path.realpath(path), inside)
    else:
        yield _node(os.path.realpath(path), inside)


def _walk(path: str, inside: str) -> Iterator[dict[str, Any]]:
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            target = f"{inside}/{entry.name}"
            if entry.path in _NOT_SHARED or entry.is_symlink():
                continue
            if entry.is_dir():
                yield from _walk(entry.path, target)
            else:
                info = entry.stat()
                if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                    yield _value(info, target)


def _node(path: str, inside: str) -> dict[str, Any]:
    def wrong(reason: str) -> InvalidParameter:
        return InvalidParameter(
            f'error gathering device information while adding custom device "{path}": {reason}'
        )

    try:
        info = os.stat(path)
    except OSError as exc:
        raise wrong((exc.strerror or "").lower()) from exc
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise wrong("not a device node")
    return _value(info, inside)


def _value(info: os.stat_result, inside: str) -> dict[str, Any]:
    return {
        "path": inside,
        "type": "c" if stat.S_ISCHR(info.st_mode) else "b",
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
    }
