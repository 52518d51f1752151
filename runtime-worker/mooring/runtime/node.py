"""What this host is and has: for its record, for `mooring doctor`, and for limits."""

from __future__ import annotations

import os
import platform
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mooring.kit import capabilities, mounts
from mooring.kit.config import Settings
from mooring.kit.models.host import NodeRecord

from .limits import HostFacts
from .network import forwarding
from .oci import cgroups

CGROUP = "/sys/fs/cgroup"
WANTED_CAPABILITIES = (
    "CAP_SYS_ADMIN",
    "CAP_NET_ADMIN",
    "CAP_MKNOD",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_DAC_OVERRIDE",
)
OLDEST_KERNEL = (5, 12)
"""The first with everything that is used without an alternative (mount_setattr)."""


class Severity(StrEnum):
    """What follows from a finding that is not all right."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. cost: what is lost without it, empty if nothing is."""

    name: str
    ok: bool
    detail: str
    cost: str = ""
    severity: Severity = Severity.INFO


def facts() -> HostFacts:
    """What this process can give to containers."""
    version = cgroups.version()
    return HostFacts(
        cgroup_version=version,
        capabilities=_own_capabilities(),
        cpus=len(os.sched_getaffinity(0)),
        rlimits={
            name.removeprefix("RLIMIT_").lower(): resource.getrlimit(getattr(resource, name))[1]
            for name in dir(resource)
            if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
        },
        blkio_weight=_has_weight(version),
        swap_limit=_has_swap_limit(version),
    )


def describe(settings: Settings) -> NodeRecord:
    """The record of this host."""
    release = _os_release()
    findings = examine()
    return NodeRecord(
        id=settings.node_id,
        name=socket.gethostname(),
        seen_ns=time.time_ns(),
        kernel=platform.release(),
        operating_system=release.get("PRETTY_NAME", "Linux"),
        os_version=release.get("VERSION_ID", ""),
        architecture=platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cgroup_version=str(cgroups.version()),
        security_options=_security_options(),
        state_dir=str(settings.state_dir),
        filesystem=_filesystem(settings.state_dir),
        run_dir=str(settings.run_dir),
        warnings=[
            f"{finding.name}: {finding.detail}; {finding.cost}"
            for finding in findings
            if not finding.ok and finding.severity is not Severity.INFO
        ],
    )


def _filesystem(directory: Path) -> str:
    try:
        return mounts.filesystem(directory)
    except OSError:
        return ""


def examine() -> list[Finding]:
    """Everything that containers need of a host, and what each thing that is missing costs."""
    checks: tuple[Callable[[], Finding], ...] = (
        _kernel,
        _root,
        _capabilities,
        _cgroups,
        _controllers,
        _swap,
        _overlay,
        _seccomp,
        _nftables,
        _forwarding,
        _bridge,
        _user_namespaces,
        _pidfd_info,
        _init,
    )
    return [check() for check in checks]


def _kernel() -> Finding:
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal()]
    ok = tuple(numbers) >= OLDEST_KERNEL
    cost = "containers cannot be started: Linux 5.12 or newer is needed"
    return Finding("kernel", ok, release, cost, Severity.ERROR)


def _root() -> Finding:
    cost = "the runtime worker must run as root"
    return Finding("root", os.geteuid() == 0, f"uid {os.geteuid()}", cost, Severity.ERROR)


def _capabilities() -> Finding:
    own = _own_capabilities()
    missing = [name for name in WANTED_CAPABILITIES if name not in own]
    if missing:
        cost = "containers cannot be started"
        return Finding("capabilities", False, "missing " + " ".join(missing), cost, Severity.ERROR)
    if "CAP_SYS_RESOURCE" not in own:
        cost = "--ulimit cannot exceed this process's hard limits, --oom-score-adj cannot go down"
        detail = "missing CAP_SYS_RESOURCE"
        return Finding("capabilities", False, detail, cost, Severity.WARNING)
    return Finding("capabilities", True, f"{len(own)} of {len(capabilities.NAMES)}")


def _cgroups() -> Finding:
    version = cgroups.version()
    cost = "no limits on memory, CPU or processes"
    ok = bool(cgroups.attach("/").directories())
    return Finding("cgroup version", ok, f"v{version}", cost, Severity.ERROR)


def _controllers() -> Finding:
    wanted = {"cpu", "cpuset", "memory", "pids"}
    if cgroups.version() == 2:
        with open(f"{CGROUP}/cgroup.controllers") as file:
            have = set(file.read().split())
    else:
        wanted |= {"devices", "freezer"}
        with open("/proc/self/cgroup") as file:
            have = {name for line in file for name in line.split(":")[1].split(",")}
    missing = sorted(wanted - have)
    detail = f"missing {' '.join(missing)}" if missing else " ".join(sorted(wanted))
    cost = "the limits of these controllers are refused"
    return Finding("cgroup controllers", not missing, detail, cost, Severity.WARNING)


def _swap() -> Finding:
    ok = _has_swap_limit(cgroups.version())
    detail = "accounted" if ok else "not accounted"
    cost = "--memory-swap has no effect (boot with swapaccount=1)"
    return Finding("swap limit", ok, detail, cost, Severity.WARNING)


def _overlay() -> Finding:
    ok = _has_filesystem("overlay")
    detail = "available" if ok else "not in /proc/filesystems"
    cost = "images cannot be used as root file systems: load the module overlay"
    return Finding("overlay", ok, detail, cost, Severity.ERROR)


def _seccomp() -> Finding:
    actions = _read("/proc/sys/kernel/seccomp/actions_avail").split()
    cost = "containers can make any system call: run them with --security-opt seccomp=unconfined"
    return Finding("seccomp", "errno" in actions, " ".join(actions), cost, Severity.ERROR)


def _nftables() -> Finding:
    path = _find_program("nft")
    cost = "the default bridge has no NAT: install nftables"
    return Finding("nftables", bool(path), path or "no nft on PATH", cost, Severity.WARNING)


def _forwarding() -> Finding:
    value = _read("/proc/sys/net/ipv4/ip_forward").strip()
    cost = "containers on the bridge do not reach beyond this host until it is on"
    detail = "on" if value == "1" else "off (turned on with the bridge)"
    return Finding("ip forwarding", value == "1", detail, cost, Severity.INFO)


def forwarding_by_others() -> Finding:
    """Whether another program's packet filter drops what containers send and get.

    Not in `examine`: it lists all rules of the host, and is true of the moment only.
    """
    name = "filters of others"
    found = forwarding.obstacles()
    if not found:
        return Finding(name, True, "none drops what our networks forward")
    cost = "containers are cut off from other hosts; as root: "
    cost += "; ".join(obstacle.remedy() for obstacle in found)
    detail = "; ".join(obstacle.where for obstacle in found)
    return Finding(name, False, detail, cost, Severity.WARNING)


def _bridge() -> Finding:
    ok = os.path.isdir("/sys/module/bridge") or bool(_find_module("bridge"))
    cost = "only the networks none and host can be used"
    return Finding("bridge", ok, "available" if ok else "no module", cost, Severity.WARNING)


def _user_namespaces() -> Finding:
    ok = os.path.exists("/proc/self/ns/user")
    detail = _read("/proc/sys/user/max_user_namespaces").strip() or "none"
    cost = "no user namespace remapping"
    return Finding("user namespaces", ok, f"at most {detail}", cost, Severity.INFO)


def _pidfd_info() -> Finding:
    numbers = [int(part) for part in platform.release().split(".")[:2] if part.isdecimal()]
    ok = tuple(numbers) >= (6, 15)
    cost = "the exit status of a container whose shim was killed is recorded as unknown"
    detail = "kernel has PIDFD_GET_INFO" if ok else "kernel is older than 6.15"
    return Finding("exit status without a shim", ok, detail, cost, Severity.INFO)


def _init() -> Finding:
    from mooring.kit.errors import NotSupported

    from . import initbinary

    try:
        return Finding("init", True, initbinary.find())
    except NotSupported:
        cost = "--init is refused: install tini or catatonit"
        return Finding("init", False, "no static init found", cost, Severity.INFO)


def _own_capabilities() -> tuple[str, ...]:
    masks = {}
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(":\t")
        if name in ("CapEff", "CapBnd"):
            masks[name] = int(value, 16)
    return capabilities.from_mask(masks["CapEff"] & masks["CapBnd"])


def _has_weight(version: int) -> bool:
    """Whether a cgroup has a block I/O weight: only cgroups below the root show it."""
    root, name = (CGROUP, "io.weight") if version == 2 else (f"{CGROUP}/blkio", "blkio.weight")
    probe = f"{root}/mooring-probe.{os.getpid()}"
    try:
        os.mkdir(probe)
    except OSError:
        return False
    try:
        return os.path.exists(f"{probe}/{name}")
    finally:
        os.rmdir(probe)


def _has_swap_limit(version: int) -> bool:
    if version == 2:
        return os.path.exists("/proc/swaps")
    return os.path.exists(f"{CGROUP}/memory/memory.memsw.limit_in_bytes")


def _security_options() -> list[str]:
    options = ["name=seccomp,profile=builtin"]
    if cgroups.version() == 2:
        options.append("name=cgroupns")
    return options


def _has_filesystem(name: str) -> bool:
    known = any(line.split()[-1] == name for line in _read("/proc/filesystems").splitlines())
    return known or bool(_find_module(name))


def _find_module(name: str) -> str:
    """A module that can be loaded, by its path below /lib/modules."""
    for line in _read(f"/lib/modules/{platform.release()}/modules.dep").splitlines():
        path = line.partition(":")[0]
        if os.path.basename(path).partition(".")[0] == name:
            return path
    for line in _read(f"/lib/modules/{platform.release()}/modules.builtin").splitlines():
        if os.path.basename(line).partition(".")[0] == name:
            return line
    return ""


def _find_program(name: str) -> str:
    for directory in (*os.environ.get("PATH", os.defpath).split(":"), "/usr/sbin", "/sbin"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    return ""


def _os_release() -> dict[str, str]:
    pairs = (line.partition("=") for line in _read("/etc/os-release").splitlines())
    return {name: value.strip("\"'") for name, _, value in pairs if name}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
