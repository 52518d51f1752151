"""Pure: a container's record and what its host contributes, as an OCI config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mooring.kit import capabilities, procpaths
from mooring.kit.models.container import ContainerRecord, HostConfig, MountPoint
from mooring.kit.options import security_option

from . import defaults, limits, mounts

OWN = ""
"""A namespace of the container's own; None is the host's, anything else the path of another's."""


@dataclass(frozen=True, slots=True)
class User:
    """Who the container's process is, looked up in the image's own files."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the host contributes to a spec: everything that had to be looked up or made."""

    facts: limits.HostFacts
    rootfs: str
    cgroup: str
    hostname: str
    user: User = User()
    network: str | None = OWN
    pid: str | None = OWN
    ipc: str | None = OWN
    uts: str | None = OWN
    files: mounts.Files | None = None
    init: str = ""
    """Host path of the init binary for --init."""
    shm: str = ""
    """Host path of a /dev/shm that is shared with other containers."""
    links: Sequence[Mapping[str, str]] = ()
    """The variables of legacy links."""
    mounts: Sequence[MountPoint] = ()
    devices: Sequence[dict[str, Any]] = ()
    resources: dict[str, Any] = field(default_factory=dict)


def build(record: ContainerRecord, around: Surroundings) -> dict[str, Any]:
    """The whole spec of one run. Seccomp is not in it: its filter is compiled apart."""
    host = record.host_config
    linux: dict[str, Any] = {
        "namespaces": namespaces(host, around),
        "resources": around.resources,
        "cgroupsPath": around.cgroup,
    }
    if around.devices:
        linux["devices"] = list(around.devices)
    sysctls = dict(host.sysctls or {})
    if record.config.domainname and around.uts == OWN:
        sysctls.setdefault("kernel.domainname", record.config.domainname)
    if sysctls:
        linux["sysctl"] = sysctls
    masked, readonly = path_rules(host)
    linux["maskedPaths"], linux["readonlyPaths"] = masked, readonly
    if propagation := mounts.root_propagation(around.mounts):
        linux["rootfsPropagation"] = propagation
    result: dict[str, Any] = {
        "ociVersion": defaults.OCI_VERSION,
        "process": process(record, around),
        "root": {"path": around.rootfs, "readonly": host.readonly_rootfs},
        "mounts": mounts.all_mounts(
            host, around.mounts, files=around.files, init=around.init, shm=around.shm
        ),
        "linux": linux,
    }
    if around.uts == OWN:
        result["hostname"] = around.hostname
    if host.annotations:
        result["annotations"] = dict(host.annotations)
    return result


def namespaces(host: HostConfig, around: Surroundings) -> list[dict[str, str]]:
    """`linux.namespaces`: those of its own, and the paths of those it joins."""
    found = [{"type": "mount"}]
    for kind, where in (
        ("network", around.network),
        ("uts", around.uts),
        ("pid", around.pid),
        ("ipc", around.ipc),
    ):
        if where is not None:
            found.append({"type": kind, "path": where} if where else {"type": kind})
    if cgroup_namespace(host, around.facts.cgroup_version):
        found.append({"type": "cgroup"})
    return found


def cgroup_namespace(host: HostConfig, version: int) -> bool:
    """Whether it sees its cgroup as the root: on v2 by default, unless privileged."""
    if host.cgroupns_mode:
        return host.cgroupns_mode == "private"
    return version == 2 and not host.privileged


def process(record: ContainerRecord, around: Surroundings) -> dict[str, Any]:
    """`process`: what is executed, as whom, with what."""
    config, host = record.config, record.host_config
    names = capability_names(host, around.facts)
    arguments = [record.path, *record.args]
    if around.init:
        arguments = [defaults.INIT_PATH, "--", *arguments]
    result: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": around.user.uid, "gid": around.user.gid},
        "args": arguments,
        "env": environment(record, around),
        "cwd": config.working_dir or "/",
        "capabilities": capability_sets(names, root=around.user.uid == 0),
        "noNewPrivileges": no_new_privileges(host),
    }
    if around.user.groups:
        result["user"]["additionalGids"] = list(around.user.groups)
    if rlimits := limits.rlimits(host, around.facts):
        result["rlimits"] = rlimits
    if host.oom_score_adj:
        result["oomScoreAdj"] = host.oom_score_adj
    return result


def capability_names(host: HostConfig, facts: limits.HostFacts) -> tuple[str, ...]:
    """The capabilities that the options choose."""
    return capabilities.chosen(
        host.cap_add or (),
        host.cap_drop or (),
        privileged=host.privileged,
        available=facts.capabilities,
    )


def capability_sets(names: Sequence[str], *, root: bool) -> dict[str, list[str]]:
    """A user who is not root has them in the bounding set only, as after an execve(2)."""
    listed = list(names)
    if not root:
        return {"bounding": listed}
    return {"bounding": listed, "effective": listed, "permitted": listed}


def environment(record: ContainerRecord, around: Surroundings) -> list[str]:
    """Docker's own variables first, each replaced in its place by what the user or image says."""
    values = {"PATH": defaults.PATH, "HOSTNAME": around.hostname}
    if record.config.tty:
        values["TERM"] = "xterm"
    for told in around.links:
        values |= told
    for variable in record.config.env or []:
        name, equals, value = variable.partition("=")
        if equals:
            values[name] = value
        else:
            # `-e NAME` of a variable that the client does not have takes it away.
            values.pop(name, None)
    values.setdefault("HOME", around.user.home or "/")
    return [f"{name}={value}" for name, value in values.items()]


def no_new_privileges(host: HostConfig) -> bool:
    """Whether `--security-opt no-new-privileges` is on; the last one counts."""
    chosen = [security_option(option) for option in host.security_opt or []]
    values = [value for name, value in chosen if name == "no-new-privileges"]
    return bool(values) and values[-1] == "true"


def seccomp_profile(host: HostConfig) -> str | None:
    """None for the default profile, `unconfined`, or a profile's JSON; the last one counts."""
    if host.privileged:
        return "unconfined"
    chosen = [security_option(option) for option in host.security_opt or []]
    values = [value for name, value in chosen if name == "seccomp"]
    return values[-1] if values and values[-1] != "builtin" else None


def path_rules(host: HostConfig) -> tuple[list[str], list[str]]:
    """Masked and read-only paths; an empty list given is a wish, none given is the default."""
    if host.privileged:
        return [], []
    masked = procpaths.MASKED_PATHS if host.masked_paths is None else host.masked_paths
    readonly = procpaths.READONLY_PATHS if host.readonly_paths is None else host.readonly_paths
    return list(masked), list(readonly)
