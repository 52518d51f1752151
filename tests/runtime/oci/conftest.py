"""Bundles of a busybox, and containers that are gone when the test is."""

from __future__ import annotations

import copy
import os
import select
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.runtime.oci import cgroups, container, entering, machine
from mooring.runtime.oci.container import OciError, Overlay, Process, Running

APPLETS = (
    "sh ls cat echo true false grep sleep id env mount umount hostname ps stty tty dd touch mkdir "
    "stat readlink wc head kill mknod pwd chown unshare"
)
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
    "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
)
MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats "
    "/proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/firmware "
    "/sys/devices/virtual/powercap"
)


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def default_spec(*args: str) -> dict[str, Any]:
    """A configuration as Docker makes it."""
    capabilities = [f"CAP_{name}" for name in CAPABILITIES.split()]
    safe = ("nosuid", "noexec", "nodev")
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1)):
        rules.append({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"})
    return {
        "ociVersion": "1.2.0",
        "hostname": "box",
        "root": {"path": "rootfs"},
        "process": {
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "mounts": [
            _mount("/proc", "proc", "proc", *safe),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount(
                "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance",
                "ptmxmode=0666", "mode=0620", "gid=5",
            ),
            _mount("/sys", "sysfs", "sysfs", *safe, "ro"),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", *safe),
            _mount("/dev/mqueue", "mqueue", "mqueue", *safe),
            _mount("/dev/shm", "tmpfs", "shm", *safe, "mode=1777", "size=67108864"),
        ],
        "linux": {
            "namespaces": [{"type": t} for t in ("mount", "uts", "ipc", "pid", "network")],
            "maskedPaths": MASKED.split(),
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
            "resources": {"devices": rules},
        },
    }  # fmt: skip


class Result:
    """What a program left behind."""

    def __init__(self, status: int, output: str) -> None:
        self.code = os.waitstatus_to_exitcode(status)
        self.output = output


class Box:
    """Runs containers from one root file system, each gone before the test ends."""

    def __init__(self, directory: Path, warm: bool) -> None:
        self.bundle = directory
        self.rootfs = directory / "rootfs"
        self.parent = f"/mooring-test-{uuid.uuid4().hex[:8]}"
        self.warm = warm
        self.running: list[Running] = []
        self._count = 0
        self.by_machine = self.early = False
        """Whether further programs are run by the machine where it can, and wait on their way."""
        self.entered = 0
        """How many were."""

    def start(
        self,
        spec: dict[str, Any],
        *,
        stdin: int | None = None,
        stdout: int,
        rootfs: Overlay | None = None,
        **options: Any,
    ) -> Running:
        """`run` with what a test does not care about filled in."""
        self._count += 1
        name = f"{self.parent}/{self._count}"
        stub = container.prepare(f"{name}-pool") if self.warm else None
        null = os.open("/dev/null", os.O_RDONLY)
        options = {
            "cgroup_path": name,
            "seccomp": None,
            "console_size": None,
            "before_exec": None,
            "stub": stub,
            **options,
        }
        try:
            running = container.run(
                copy.deepcopy(spec),
                bundle=str(self.bundle),
                rootfs=rootfs,
                stdin=null if stdin is None else stdin,
                stdout=stdout,
                stderr=stdout,
                **options,
            )
        finally:
            os.close(null)
        self.running.append(running)
        return running

    def run(self, spec: dict[str, Any], **options: Any) -> Result:
        """Start a container and collect its output and exit status."""
        reader, writer = os.pipe()
        try:
            running = self.start(spec, stdout=writer, **options)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return self.finish(running, reader)

    def finish(self, running: Running, reader: int) -> Result:
        """Read to the end, wait, and remove what is left."""
        result = Result(*collect(running, reader))
        self.clean(running)
        return result

    def clean(self, running: Running) -> None:
        """End a container if need be and remove what it was made of."""
        self.running.remove(running)
        running.cgroup.kill()
        try:
            os.waitpid(running.pid, 0)
        except ChildProcessError:
            pass
        for fd in (running.pidfd, running.root, running.master):
            if fd is not None:
                os.close(fd)
        running.cgroup.remove()

    def exec(self, running: Running, spec: dict[str, Any], *args: str, **process: Any) -> Result:
        """Run a further program in a container, in the way that `by_machine` says."""
        reader, writer = os.pipe()
        description = {**spec["process"], "args": list(args), **process}
        try:
            started = self._enter(running, description, writer) or container.exec_process(
                running, spec, description, stdin=writer, stdout=writer, stderr=writer,
                console_size=(24, 80), seccomp=None,
            )  # fmt: skip
        except OciError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        if started.master is not None:
            os.close(reader)
            reader = started.master
        result = Result(*collect(started, reader))
        os.close(started.pidfd)
        return result

    def _enter(self, running: Running, values: dict[str, Any], stdio: int) -> Process | None:
        if not self.by_machine:
            return None
        streams = stdio, stdio, stdio
        entering = container.enter(running, values, streams, None, early=self.early)
        if entering is None:
            return None
        entering.go()
        select.select([entering.channel], [], [])
        if not entering.executed():
            return None
        self.entered += 1
        return Process(entering.pid, entering.pidfd, None)


def collect(process: Process, reader: int) -> tuple[int, str]:
    """(wait status, output) of a process; the end of a terminal is EIO."""
    parts = []
    try:
        while part := os.read(reader, 65536):
            parts.append(part)
    except OSError:
        pass
    os.close(reader)
    if process.master == reader:
        process.master = None
    return os.waitpid(process.pid, 0)[1], b"".join(parts).decode()


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with a static busybox; tests copy it."""
    program = shutil.which("busybox")
    if program is None or os.geteuid() != 0:
        pytest.skip("needs root and a static busybox")
    rootfs = tmp_path_factory.mktemp("busybox") / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy(program, rootfs / "bin/busybox")
    for applet in APPLETS.split():
        (rootfs / "bin" / applet).symlink_to("busybox")
    return rootfs


@pytest.fixture(params=["warm", "cold"])
def box(request: pytest.FixtureRequest, busybox: Path, tmp_path: Path) -> Iterator[Box]:
    """Containers from a process prepared ahead, and from none: the same must come of both."""
    shutil.copytree(busybox, tmp_path / "rootfs", symlinks=True)
    result = Box(tmp_path, request.param == "warm")
    if machine.available():
        entering.executable()
    descriptors = set(os.listdir("/proc/self/fd"))
    yield result
    for running in list(result.running):
        result.clean(running)
    assert cgroups.children(result.parent) == []
    assert not cgroups.attach(result.parent).exists()
    # Fewer may be open: other tests leave some to the collector.
    assert set(os.listdir("/proc/self/fd")) <= descriptors
