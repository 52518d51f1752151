"""A systemd host in a container of systemd-nspawn: booted, entered, powered off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mooring.systemd.install import compile_program

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = Path(os.environ.get("MOORING_HOST_ROOT", "/var/cache/mooring-tests/host"))
"""Built once and kept: debootstrap takes more than a minute."""
MACHINE = os.environ.get("MOORING_HOST_NAME", "mooring-a")
"""Hosts of one name at the same time would take each other's cgroups away."""
SLICE = "mooring.slice" if MACHINE == "mooring-a" else f"{MACHINE}.slice"
"""Below it are the cgroups of version 1."""
BOOT, STOP = 60.0, 60.0
"""Seconds."""
SOCKET = "unix:///run/mooring/docker.sock"
BUS = Path("/run/dbus/system_bus_socket")
_CLEAN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


class Host:
    """One booted host. Commands run in its namespaces, with this project's programs on PATH."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.root = folder / "root"
        self._nspawn: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start systemd and wait until it has started everything."""
        with (self.folder / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                self._command(),
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._until(lambda: self._state() in ("running", "degraded"), BOOT, "has not booted")

    def _command(self) -> list[str]:
        binds = {str(REPOSITORY), sys.prefix, "/usr/local/bin/docker"}
        return [
            "systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}",
            f"--machine={self.name}", "--register=no", "--keep-unit", "--private-network",
            "--capability=all", "--system-call-filter=@keyring bpf", "--link-journal=no",
            # A container's layers cannot be on the overlay that the host's own disk is.
            f"--bind={self.folder}/state:/var/lib/mooring",
            *(f"--bind-ro={path}" for path in sorted(binds) if os.path.exists(path)),
        ]  # fmt: skip

    @property
    def leader(self) -> int:
        """The pid of its systemd as seen here; 0 while there is none."""
        assert self._nspawn is not None
        # nspawn's only child sets the container up, and that one's child is its init.
        for child in _children(self._nspawn.pid):
            for pid in (child, *_children(child)):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return pid
        return 0

    def run(
        self, *command: str, check: bool = True, timeout: float = 120.0, data: bytes | None = None
    ) -> str:
        """Run a command in the host; its stdout. AssertionError with its output if it fails."""
        done = subprocess.run(
            self.entered(*command),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)}: {done.returncode}\n{done.stdout.decode(errors='replace')}"
                f"\n{done.stderr.decode(errors='replace')}"
            )
        return done.stdout.decode(errors="replace")

    def entered(self, *command: str) -> list[str]:
        """The command line that runs a command in the host."""
        environment = {
            **_CLEAN,
            "PATH": f"{Path(sys.executable).parent}:{_CLEAN['PATH']}",
            "DOCKER_HOST": SOCKET,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        settings = [f"{name}={value}" for name, value in environment.items()]
        enter = ["nsenter", "--target", str(self.leader), "--all", "--wd=/"]
        return [*enter, "env", "-i", *settings, *command]

    def install(self) -> None:
        """Install the engine; its cgroups of version 1 apart from those of other hosts."""
        parent = f"cgroup_parent=/{SLICE}/mooring-containers.service"
        own = SLICE != "mooring.slice" and not Path("/sys/fs/cgroup/cgroup.controllers").exists()
        self.run("mooring", "install", *(("--set", parent) if own else ()))

    def docker(self, *arguments: str, check: bool = True, timeout: float = 60.0) -> str:
        """The docker CLI against the host's engine."""
        return self.run("docker", *arguments, check=check, timeout=timeout)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def reboot(self) -> None:
        """Shut it down in order and boot it again."""
        self.power_off()
        self.boot()

    def power_off(self) -> None:
        """Power it off; killed if that takes too long."""
        if self._nspawn is None:
            return
        if self.leader:
            self.run("systemctl", "poweroff", check=False)
        try:
            self._nspawn.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()
        self._nspawn = None

    def _state(self) -> str:
        if not self.leader:
            return ""
        return self.run("systemctl", "is-system-running", check=False).strip()

    def _until(self, done: object, seconds: float, complaint: str) -> None:
        assert callable(done)
        deadline = time.monotonic() + seconds
        while not done():
            assert self._nspawn is not None
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                console = (self.folder / "console").read_text(errors="replace")
                raise AssertionError(f"{self.name} {complaint}:\n{console[-3000:]}")
            time.sleep(0.1)


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@contextmanager
def booted(name: str, folder: Path) -> Iterator[Host]:
    """A host of its own, gone afterwards; its disk is a copy-on-write view of the common root."""
    # As it would be where the package is installed: the host cannot write where it is.
    compile_program()
    with bus():
        subprocess.run([REPOSITORY / "tools" / "make-host-root", ROOT], check=True)
        host = Host(name, folder)
        for part in ("root", "upper", "work", "state"):
            (folder / part).mkdir()
        layers = f"lowerdir={ROOT},upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, host.root], check=True)
        try:
            host.boot()
            yield host
        finally:
            try:
                host.power_off()
            finally:
                subprocess.run(["umount", "--lazy", host.root], check=True)
                remove_cgroups()
                for part in ("upper", "work", "state"):
                    shutil.rmtree(folder / part, ignore_errors=True)


@contextmanager
def bus() -> Iterator[None]:
    """A system bus for nspawn, ours if this machine has none."""
    if BUS.exists():
        yield
        return
    BUS.parent.mkdir(parents=True, exist_ok=True)
    daemon = subprocess.Popen(["dbus-daemon", "--system", "--nofork", "--nopidfile"])
    try:
        while not BUS.exists():
            assert daemon.poll() is None
            time.sleep(0.01)
        yield
    finally:
        daemon.terminate()
        daemon.wait()
        BUS.unlink(missing_ok=True)


def remove_cgroups() -> None:
    """What the host's engine had in the controllers of version 1, which are this machine's too."""
    for slice_ in Path("/sys/fs/cgroup").glob(f"*/{SLICE}"):
        for folder, _, _ in os.walk(slice_, topdown=False):
            # Only empty ones go.
            with suppress(OSError):
                os.rmdir(folder)
