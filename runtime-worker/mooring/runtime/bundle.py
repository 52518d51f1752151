"""Everything a run needs on disk: its bundle, its files, its policy, the command to repeat it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from mooring.kit.errors import EngineError
from mooring.kit.models.container import ContainerRecord, MountPoint
from mooring.kit.models.host import HostStart
from mooring.kit.models.image import ImageRecord

from . import devices, files, initbinary, limits, mounts, spec
from .host_files import NameFiles
from .joins import Joined
from .layout import Layout
from .overlay import Overlay
from .sandbox import Sandbox
from .volumes.volumes import check_source

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
"""Made once: json.dumps makes an encoder for every call that is not the default one."""
HEALTHCHECK = "healthcheck.msgpack"
"""In the run directory, for the agent: the HealthConfig of a container that has one."""


class Snapshots(Protocol):
    """The active snapshots of containers; see snapshots.Snapshots."""

    def prepare(self, container_id: str, image: ImageRecord) -> Overlay:
        """Make the snapshot of a container, or find the one it has."""

    def shown(self, image: ImageRecord, subpath: str) -> tuple[str, ...]:
        """The directories or the file that an image is at a path, topmost first."""


class HasMounts(Protocol):
    """A request about a container and the images mounted in it."""

    record: ContainerRecord
    images: list[ImageRecord]


class Users(Protocol):
    """Who Config.User and GroupAdd are in a container's own files; see users.Users."""

    def lookup(
        self, overlay: Overlay, image_id: str, user: str, group_add: Sequence[str] = ()
    ) -> spec.User: ...


class Prepared:
    """A run that is on disk, ready for a shim."""

    __slots__ = ("cgroup", "overlay", "spec", "warnings")

    def __init__(
        self, overlay: Overlay, cgroup: str, warnings: list[str], value: dict[str, Any]
    ) -> None:
        self.spec = value
        self.overlay = overlay
        self.cgroup = cgroup
        self.warnings = warnings


class Bundles:
    """Writes bundles. Nothing here waits for anything but the local file system."""

    def __init__(
        self,
        layout: Layout,
        facts: limits.HostFacts,
        snapshots: Snapshots,
        users: Users,
        cgroup_root: str,
    ) -> None:
        self._layout = layout
        self.facts = facts
        self._snapshots = snapshots
        self._users = users
        self._cgroup_root = cgroup_root
        self._names = NameFiles()

    def cgroup(self, record: ContainerRecord) -> str:
        """The cgroup of a container, the same for each of its runs."""
        parent = record.host_config.cgroup_parent or self._cgroup_root
        return f"/{parent.strip('/')}/{record.id}"

    def prepare(
        self, request: HostStart, sandbox: Sandbox, joined: Joined, hostname: str
    ) -> Prepared:
        """Write the bundle of a run; InvalidParameter for options that this host refuses."""
        record = request.record
        directory = self._layout.container(record.id)
        # The run directory is the bundle: a bundle is good for one run.
        bundle = self._layout.run_directory(record.id, request.run)
        _make(directory)
        overlay = self._snapshots.prepare(record.id, request.image)
        wanted = self.user_mounts(request)
        _check_sources(wanted)
        nodes, rules = devices.chosen(record.host_config)
        resources, warnings = limits.resources(record.host_config, self.facts, devices.number)
        resources["devices"] = rules
        cgroup = self.cgroup(record)
        around = spec.Surroundings(
            facts=self.facts,
            rootfs=f"{bundle}/rootfs",
            cgroup=cgroup,
            hostname=hostname,
            user=self._users.lookup(
                overlay,
                request.image.id,
                record.config.user,
                record.host_config.group_add or (),
            ),
            network=sandbox.namespace,
            pid=joined.pid,
            ipc=joined.ipc,
            uts=joined.uts,
            files=self._write_files(record, bundle, sandbox, joined, hostname),
            init=initbinary.find() if record.host_config.init else "",
            shm=joined.shm,
            mounts=wanted,
            devices=nodes,
            resources=resources,
            links=[link.variables for link in joined.links],
        )
        value = spec.build(record, around)
        _make(f"{directory}/log")
        write(f"{bundle}/config.json", dumps(value))
        if record.config.healthcheck is not None:
            write(f"{bundle}/{HEALTHCHECK}", record.config.healthcheck.pack())
        return Prepared(overlay, cgroup, warnings, value)

    def user_mounts(self, request: HasMounts) -> list[MountPoint]:
        """The user's mounts, those of images with the directories that they are."""
        points = request.record.mounts
        if not request.images:
            return points
        images = {image.id: image for image in request.images}
        return [
            mounts.image_mount(point, self._snapshots.shown(images[point.image_id], point.subpath))
            if point.type == "image"
            else point
            for point in points
        ]

    def write_command(self, request: HostStart) -> None:
        """Keep a start by command: restarts repeat it, the policy counts from its run on.

        Only for a policy that restarts: it has to outlast a reboot, which costs inodes on a disk.
        """
        record = request.record
        directory = self._layout.container(record.id)
        policy = record.host_config.restart_policy
        if policy.name in ("", "no"):
            _forget_command(directory)
            return
        fields = {
            "name": policy.name,
            "max": policy.maximum_retry_count,
            "count": 0,
            "stopped": False,
            "run": request.run,
        }
        replace(f"{directory}/start.msgpack", request.pack())
        replace(f"{directory}/policy.json", dumps(fields))

    def _write_files(
        self,
        record: ContainerRecord,
        directory: str,
        sandbox: Sandbox,
        joined: Joined,
        hostname: str,
    ) -> mounts.Files:
        if joined.network_of is not None:
            # One network has one set of names: the files of whose network it is.
            for name in ("hosts", "hostname", "resolv.conf"):
                os.link(f"{joined.network_of.directory}/{name}", f"{directory}/{name}")
        else:
            host = record.host_config
            hosts = files.hosts(
                base=self._names.hosts() if sandbox.host_files else None,
                extra=host.extra_hosts or (),
                gateway=sandbox.gateway,
                addresses=sandbox.addresses,
                hostname=hostname,
                domainname=record.config.domainname,
            )
            for link in joined.links:
                hosts = files.hosts_with(hosts, [link.address], link.names)
            resolv = files.resolv(
                self._names.resolv(shared=sandbox.host_files),
                servers=host.dns or (),
                search=host.dns_search or (),
                options=host.dns_options or (),
                keep_loopback=sandbox.host_files,
                dns=sandbox.state.dns,
            )
            write(f"{directory}/hosts", hosts.encode())
            write(f"{directory}/hostname", f"{hostname}\n".encode())
            write(f"{directory}/resolv.conf", resolv.encode())
        return mounts.Files(
            hosts=f"{directory}/hosts",
            hostname=f"{directory}/hostname",
            resolv=f"{directory}/resolv.conf",
        )


def dumps(value: Mapping[str, Any]) -> bytes:
    """JSON without blanks."""
    return _encode(value).encode()


def write(path: str, data: bytes) -> None:
    """Write a file of ours, readable by everybody as it may be seen in a container."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def replace(path: str, data: bytes) -> None:
    """Write a file that another process may be reading: it sees the old one or the new one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    new = ""
    try:
        # Before there is one, nobody looks for it: a rename less on the path of a first start.
        descriptor = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError:
        new = f"{path}.new"
        descriptor = os.open(new, flags | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    if new:
        os.rename(new, path)


def _forget_command(directory: str) -> None:
    """What an earlier start by command left, with a policy that the container has no more."""
    try:
        os.unlink(f"{directory}/policy.json")
    except FileNotFoundError:
        # Written after the start that it belongs to.
        return
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/start.msgpack")


def _make(directory: str) -> None:
    try:
        os.mkdir(directory, 0o711)
    except FileExistsError:
        pass


def _check_sources(wanted: Sequence[MountPoint]) -> None:
    """Make the sources of `-v`, which Docker makes; refuse the missing ones of `--mount`."""
    for item in wanted:
        if item.type != "bind" or os.path.exists(item.source):
            continue
        if not item.create_source:
            check_source(item.source)
        try:
            os.makedirs(item.source, 0o755)
        except OSError as exc:
            raise EngineError(
                f"error while creating mount source path '{item.source}': {exc.strerror}"
            ) from exc
