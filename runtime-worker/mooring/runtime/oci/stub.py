"""A process forked ahead of its container: in new namespaces, in a cgroup, waiting for its job."""

from __future__ import annotations

import os

from . import cgroups, template
from .channel import Channel, pair
from .errors import because
from .init import become_child, main
from .linux import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    SIGKILL,
    clone3,
    send_signal,
    setns,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .cgroup import Cgroup
    from .namespaces import Namespaces

_PREPARED = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID


class Stub:
    """A process in new namespaces that waits to become a container."""

    __slots__ = ("ahead", "cgroup", "channel", "device_rules", "namespaces", "pid", "pidfd")

    def __init__(
        self, pid: int, pidfd: int, channel: Channel, namespaces: int, cgroup: Cgroup | None
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.namespaces = namespaces
        self.cgroup = cgroup
        self.ahead = False
        self.device_rules: list[dict[str, Any]] | None = None

    @property
    def shows_cgroup(self) -> bool:
        """Whether its /sys/fs/cgroup has been made ahead."""
        return self.ahead and self.cgroup is not None

    def fits(self, spaces: Namespaces, cgroup: str) -> bool:
        """Whether it was born with exactly the namespaces a configuration asks for."""
        if self.namespaces & ~spaces.new or spaces.new & CLONE_NEWUSER:
            return False
        # On v1 its cgroup will be renamed, which can't move it elsewhere.
        here = self.cgroup.path if self.cgroup else ""
        return not here or here.rpartition("/")[0] == cgroup.rstrip("/").rpartition("/")[0]

    def abandon(self) -> None:
        """End it, bury it and remove its cgroup."""
        self.channel.close()
        bury(self.pid, self.pidfd)
        if self.cgroup is not None:
            self.cgroup.remove()


def prepare(cgroup_path: str | None) -> Stub:
    """Fork ahead of time a process with the namespaces that a container usually has.

    cgroup_path: a cgroup to make for it on v1, a sibling of the one the container will have.
    """
    cgroup = None
    rules = None
    if cgroup_path and cgroups.version() == 1:
        # The child makes it: what this process touches before it forks, it has to copy twice.
        cgroup = cgroups.attach(cgroup_path)
        rules = template.DEVICE_RULES
    return fork(_PREPARED, cgroup, rules, ahead=True)


def fork(
    flags: int,
    cgroup: Cgroup | None,
    device_rules: list[dict[str, Any]] | None = None,
    *,
    ahead: bool = False,
    born_in: Cgroup | None = None,
    keep: int = 0,
) -> Stub:
    """Fork it. cgroup: the child enters it (v1), and makes it before with `device_rules`;
    born_in: it is born there (v2)."""
    ours, theirs = pair()
    directory = -1
    try:
        if born_in is not None:
            directory = os.open(born_in.directories()[0], os.O_PATH | os.O_CLOEXEC)
        pid, pidfd = clone3(flags, directory)
        if pid == 0:
            become_child(theirs, lambda channel: main(channel, cgroup, keep, ahead, device_rules))
    except OSError as error:
        ours.close()
        if cgroup is not None:
            cgroup.remove()
        raise because("cannot create the container's namespaces", error) from error
    finally:
        theirs.close()
        if directory >= 0:
            os.close(directory)
    stub = Stub(pid, pidfd, ours, flags, cgroup)
    stub.ahead, stub.device_rules = ahead, device_rules
    return stub


class PidNamespace:
    """Children forked inside this context are born in another pid namespace."""

    __slots__ = ("_own", "_target")

    def __init__(self, target: int | None) -> None:
        """target: a namespace or a pidfd; None changes nothing."""
        self._target = target
        self._own = -1

    def __enter__(self) -> None:
        if self._target is not None:
            self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(self._target, CLONE_NEWPID)
            except OSError as error:
                os.close(self._own)
                raise because("cannot join the pid namespace", error) from error

    def __exit__(self, *_: object) -> None:
        if self._target is not None:
            setns(self._own, CLONE_NEWPID)
            os.close(self._own)


def bury(pid: int, pidfd: int) -> None:
    """SIGKILL a child of ours and wait for it; its pidfd is closed."""
    try:
        send_signal(pidfd, SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
    os.close(pidfd)
