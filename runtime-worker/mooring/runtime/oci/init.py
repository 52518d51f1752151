"""The container's first process, from the moment it has namespaces to the moment it executes.

It is a copy of the shim (or of the command line) until then: single-threaded, not dumpable, with
no descriptor but its channel. Its two waits are for the job, which makes a prepared one cheap to
keep, and for permission to execute.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from . import devices, namespaces, paths, process, terminal
from .channel import ERROR, GO, HOOKS, JOB, MOUNTS, PREPARED, READY, TERMINAL, Channel
from .errors import FAILED, OciError, because
from .hooks import run_hooks
from .linux import (
    CLONE_NEWNET,
    PR_SET_DUMPABLE,
    close_range,
    default_signals,
    new_session_keyring,
    prctl,
    set_domainname,
    set_hostname,
    set_name,
    set_personality,
    setns,
    unshare,
)
from .mountspec import Mount
from .rootfs import Root, all_mounts, detach_from_host
from .staging import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .cgroup import Cgroup

_NOBODY_WAITS = 249  # the exit code of a child that did not execute


def become_child(channel: Channel, work: Callable[[Channel], object]) -> NoReturn:
    """Be a process of its own, with a session and signals of its own; then work.

    `work` ends by executing a program, or by raising: its error crosses the channel.
    """
    try:
        gc.disable()
        prctl(PR_SET_DUMPABLE, 0)
        set_name(b"mooring-init")
        default_signals()
        os.setsid()
        os.umask(0)
        try:
            work(channel)
        except OciError as error:
            channel.send(ERROR, (error.exit_code, error.message))
        except OSError as error:
            channel.send(ERROR, (FAILED, str(error.strerror or error)))
        except BaseException as error:
            channel.send(ERROR, (FAILED, f"{type(error).__name__}: {error}"))
    finally:
        # Nobody is left to be told, or everything was said; never back into the caller's code.
        os._exit(_NOBODY_WAITS)


def forbid_imports() -> None:
    """From here on paths are the container's, and Python must never take a module from there."""
    sys.meta_path.clear()


def main(
    channel: Channel,
    cgroup: Cgroup | None,
    keep: int,
    staged: bool,
    device_rules: list[dict[str, Any]] | None = None,
) -> None:
    """Enter the cgroup, wait for the job and do it; returns only if the caller gave up.

    keep: how many descriptors after stderr to leave open. staged: make ahead of the job what
    most containers have. device_rules: make the cgroup first, with these.
    """
    channel.move(3 + keep)
    close_range(channel.fileno() + 1)
    if cgroup is not None:
        if device_rules is not None:
            cgroup.create()
            cgroup.apply({"devices": device_rules})
        cgroup.enter()
    detach_from_host()
    stage = Stage(cgroup) if staged else None
    channel.send(PREPARED)
    letter, job, fds = channel.receive(most_fds=16)
    if letter == JOB:
        Init(channel, job, fds, stage).run()


class Init:
    """One job: the configuration, and the descriptors that came with it."""

    __slots__ = ("_channel", "_fds", "_job", "_process", "_spec", "_stage", "_steps")

    def __init__(
        self, channel: Channel, job: dict[str, Any], fds: list[int], stage: Stage | None
    ) -> None:
        self._stage = stage
        self._channel = channel
        self._job = job
        self._fds = fds
        self._spec: dict[str, Any] = job["spec"]
        self._process: dict[str, Any] = self._spec.get("process") or {}
        self._steps: list[tuple[str, float]] = [("received", time.monotonic())]

    def run(self) -> None:
        """From the job to execve."""
        capabilities = process.check(self._process)
        self._enter_namespaces()
        self._step("namespaces")
        self._build_root()
        if not self._process.get("terminal"):
            for number in range(3):
                os.dup2(self._fds[number], number)
        # Whatever is open now was for us: nothing of the host may be reachable from here on.
        close_range(self._channel.fileno() + 1)
        process.become_user(self._process, capabilities)
        program = process.find_program(self._process)
        self._step("user")
        self._channel.send(READY, self._steps if self._job["timings"] else None)
        letter, _, fds = self._channel.receive(most_fds=1)
        if letter != GO:
            return
        if fds:
            # `create`: the program waits until `start` writes a byte into this FIFO.
            os.read(fds[0], 1)
            os.close(fds[0])
        self._run_hooks("startContainer")
        seccomp, flags = self._job["seccomp"], self._job["seccomp_flags"]
        process.execute(self._process, program, capabilities, seccomp, flags, self._job["keep"])

    def _step(self, name: str) -> None:
        if self._job["timings"]:
            self._steps.append((name, time.monotonic()))

    def _enter_namespaces(self) -> None:
        for flag, index in self._job["joined"]:
            try:
                setns(self._fds[index], flag)
            except OSError as error:
                names = {bit: name for name, bit in namespaces.FLAGS.items()}
                raise because(f"cannot join the {names[flag]} namespace", error) from error
        late: int = self._job["late"]
        if late:
            unshare(late)
        if late & CLONE_NEWNET:
            _bring_up_loopback()
        try:
            new_session_keyring(b"mooring")
        except OSError:
            pass  # a kernel without keyrings has nothing to leak
        process.set_host_side(self._process)
        if self._spec.get("hostname"):
            set_hostname(self._spec["hostname"])
        if self._spec.get("domainname"):
            set_domainname(self._spec["domainname"])
        linux = self._spec.get("linux") or {}
        for key, value in (linux.get("sysctl") or {}).items():
            self._set_sysctl(key, value)
        if persona := linux.get("personality"):
            if persona.get("domain") not in ("LINUX", "LINUX32"):
                raise OciError(f"linux.personality {persona.get('domain')} is not supported")
            set_personality(8 if persona["domain"] == "LINUX32" else 0)

    def _set_sysctl(self, key: str, value: str) -> None:
        # Both a.b.c and a/b/c are in use; a name with a dot inside (an interface) needs the latter.
        name = key if "/" in key else key.replace(".", "/")
        if ".." in name.split("/"):
            raise OciError(f"invalid sysctl {key}")
        try:
            if self._stage is not None:
                fd = self._stage.open_sysctl(name)
            else:
                fd = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(value).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise because(f"cannot set sysctl {key} to {value}", error) from error

    def _build_root(self) -> None:
        mounts = all_mounts(self._spec)
        letter, trees, fds = self._channel.receive(most_fds=253)
        if letter != MOUNTS:
            os._exit(_NOBODY_WAITS)
        self._step("waited")
        if self._job["hooks"]:
            self._channel.send(HOOKS)
            if self._channel.receive()[0] != GO:
                os._exit(_NOBODY_WAITS)
        root = Root(fds[0])
        root.attach()
        linux = self._spec.get("linux") or {}
        ahead = self._stage.fitting(self._spec) if self._stage else set()
        self._mount(root, mounts, trees, fds, ahead)
        self._step("mounts")
        if "/dev" not in ahead and _makes_devices(mounts):
            self._populate_dev(root)
        for device in linux.get("devices") or ():
            devices.create(root.fd, device)
        if self._process.get("terminal"):
            self._open_terminal(root)
        for path in linux.get("readonlyPaths") or ():
            if "/proc" not in ahead or not path.startswith("/proc/"):
                root.make_readonly(path)
        for path in linux.get("maskedPaths") or ():
            if "/proc" not in ahead or not path.startswith("/proc/"):
                root.mask(path)
        self._step("masks")
        self._run_hooks("createContainer")
        _make_working_directory(root, self._process["cwd"])
        forbid_imports()
        readonly = bool((self._spec.get("root") or {}).get("readonly"))
        root.enter(linux.get("rootfsPropagation") or "", readonly=readonly)
        self._step("pivot")

    def _mount(
        self,
        root: Root,
        mounts: list[Mount],
        trees: dict[str, Any],
        fds: list[int],
        ahead: set[str],
    ) -> None:
        binds: dict[int, int] = trees["binds"]
        cgroups = [(name, fds[index]) for name, index in trees["cgroups"]]
        for number, mount in enumerate(mounts):
            if mount.destination in ahead and self._stage is not None:
                if (part := self._stage.part(mount.destination)) >= 0:
                    root.take(mount, part)
            else:
                root.mount(mount, fds[binds[number]] if number in binds else None, cgroups)

    def _populate_dev(self, root: Root) -> None:
        directory = paths.make(root.fd, "/dev", directory=True)
        try:
            devices.populate(directory)
        except OSError as error:
            raise because("cannot populate /dev", error) from error
        finally:
            os.close(directory)

    def _open_terminal(self, root: Root) -> None:
        master = root.open_terminal()
        if size := self._job["console_size"]:
            terminal.resize(master, *size)
        slave = terminal.open_slave(master, (self._process.get("user") or {}).get("uid") or 0)
        root.put_console(slave)
        self._channel.send(TERMINAL, None, [master])
        terminal.take(slave)

    def _run_hooks(self, name: str) -> None:
        hooks = (self._spec.get("hooks") or {}).get(name)
        if hooks:
            run_hooks(name, hooks, self._job["state"])


def _makes_devices(mounts: list[Mount]) -> bool:
    """/dev is ours to fill unless it is bound from somewhere."""
    return not any(mount.bind and os.path.normpath(mount.destination) == "/dev" for mount in mounts)


def _make_working_directory(root: Root, path: str) -> None:
    # Docker's WORKDIR need not exist in the image. Where it can't be made, chdir says why.
    try:
        os.close(paths.make(root.fd, path, directory=True))
    except OSError:
        pass


def _bring_up_loopback() -> None:
    import _socket
    import fcntl

    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    request = b"lo".ljust(16, b"\0")
    answer = fcntl.ioctl(socket.fileno(), get_flags, request + bytes(24))
    flags = int.from_bytes(answer[16:18], "little") | up
    fcntl.ioctl(socket.fileno(), set_flags, request + flags.to_bytes(2, "little") + bytes(22))
    socket.close()
