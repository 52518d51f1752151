"""What the two versions of cgroups have in common."""

from __future__ import annotations

import os
import time

from .errors import OciError
from .linux import SIGKILL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read(path: str) -> str:
    """A cgroup file, stripped; "" if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode().strip()


def write(path: str, value: str) -> None:
    """Write a cgroup file in one write, as the kernel wants it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def number(path: str) -> int:
    """A cgroup file with one number; 0 if it is not there, -1 for `max`."""
    text = read(path)
    return -1 if text == "max" else int(text or 0)


def table(path: str) -> dict[str, int]:
    """A cgroup file of `name number` lines."""
    pairs = (line.split() for line in read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def remove_tree(directory: str) -> None:
    """rmdir a cgroup and those made below it; OSError EBUSY while processes are inside."""
    try:
        os.rmdir(directory)
        return
    except FileNotFoundError:
        return
    except OSError:
        below = [entry.path for entry in os.scandir(directory) if entry.is_dir()]
        if not below:
            raise
    for path in below:
        remove_tree(path)
    os.rmdir(directory)


class Cgroup:
    """The cgroup of one container: `path` begins with a slash and counts from the root."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        if not path.startswith("/") or "/../" in path + "/":
            raise OciError(f"invalid cgroup path {path!r}")
        self.path = path.rstrip("/")

    def directories(self) -> list[str]:
        """Where this cgroup is: one directory on v2, one to a hierarchy on v1."""
        raise NotImplementedError

    def create(self) -> None:
        """Make the cgroup and what is missing above it; one that exists is taken as it is."""
        raise NotImplementedError

    def enter(self) -> None:
        """Move the calling process, which must be single-threaded, into the cgroup."""
        raise NotImplementedError

    def join(self, pid: int) -> None:
        """Move any process into the cgroup."""
        for directory in self.directories():
            write(f"{directory}/cgroup.procs", str(pid))

    def rename(self, path: str) -> None:
        """Give it another last name (v1 only)."""
        raise NotImplementedError

    def apply(self, resources: dict[str, Any]) -> None:
        """Set limits from OCI's linux.resources; what is not named stays as it is."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stop every process inside; returns when they have stopped."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let them go on."""
        raise NotImplementedError

    def frozen(self) -> bool:
        """Whether `freeze` is in force."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """Counters as the kernel has them: times in ns, sizes in bytes."""
        raise NotImplementedError

    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        raise NotImplementedError

    OOM_EVENT = 0x1
    """What to wait for at the descriptor of `watch_oom`: EPOLLIN, or EPOLLPRI."""

    def watch_oom(self) -> int:
        """A descriptor that tells of want of memory; -1 without a limit. OSError."""
        raise NotImplementedError

    def take_oom(self, descriptor: int) -> int:
        """Take what the descriptor told: how many times, if that is known."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Every process inside, here and below, as numbered on the host."""
        found: set[int] = set()
        waiting = self.directories()[:1]
        while waiting:
            directory = waiting.pop()
            found.update(map(int, read(f"{directory}/cgroup.procs").split()))
            try:
                waiting += [entry.path for entry in os.scandir(directory) if entry.is_dir()]
            except FileNotFoundError:
                pass
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL every process inside."""
        for pid in self.pids():
            if not pid:
                continue  # of another pid namespace; to kill(2) it would be all of our own group
            try:
                os.kill(pid, SIGKILL)
            except ProcessLookupError:
                pass

    def exists(self) -> bool:
        """Whether any of it is there."""
        return any(map(os.path.isdir, self.directories()))

    def remove(self, timeout: float = 5.0) -> None:
        """Remove it (killing what is still inside), and parents that are left empty.

        OciError when something inside would not die within `timeout` seconds.
        """
        deadline = 0.0
        for directory in self.directories():
            while True:
                try:
                    remove_tree(directory)
                    break
                except OSError as error:
                    now = time.monotonic()
                    deadline = deadline or now + timeout
                    if now > deadline:
                        raise OciError(f"cannot remove cgroup {self.path}: {error}") from error
                # A process that was killed leaves its cgroup only when it has been buried.
                self.kill()
                time.sleep(0.002)
        self._remove_empty_parents()

    def _remove_empty_parents(self) -> None:
        depth = self.path.count("/") - 1
        for directory in self.directories():
            for level in range(depth):
                directory = directory.rpartition("/")[0]
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    break
                except OSError:
                    if not level:
                        # Siblings are in every hierarchy; the last of them looks at all of them.
                        return
                    break

    def _refused(self, what: str, cause: OSError) -> OciError:
        if isinstance(cause, FileNotFoundError):
            return OciError(f"cannot set {what}: this kernel has no such cgroup limit")
        return OciError(f"cannot set {what} of cgroup {self.path}: {cause.strerror}")
