"""The launcher: a tiny process, kept warm by the worker, that forks a shim for each container.

Everything a shim needs is imported here once and shared by all shims, so what is not needed must
not be imported: every page that a shim writes to is its own.
"""

from __future__ import annotations

import ctypes
import gc
import os
from _socket import (
    AF_UNIX,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)
from os import O_WRONLY, POSIX_SPAWN_DUP2, close, posix_spawn, waitpid, write
from os import open as open_file
from select import EPOLL_CLOEXEC, EPOLLRDHUP, epoll

from mooring.runtime.oci import machine
from mooring.runtime.oci.linux import set_name
from mooring.shim import adopt, packets, shim, version, warm
from mooring.shim.rawsignal import (
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
)
from mooring.shim.rawsignal import signal as set_signal
from mooring.shim.rehearsal import rehearse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONTROL = 3
"""The descriptor of the worker's socket. When it closes, the launcher ends; its shims go on."""

BARE = b"bare"
"""The request for a shim without a helper: its container is made by whoever asked for it."""
SUCCESSOR = b"successor "
"""The request for a shim in place of another (shim/adopt.py); the run's directory follows."""
FACTORY = b"factory"
"""The request for the process that makes network sandboxes (network/factory.py)."""
_SO_PASSCRED = 16
_PACKET_BYTES = 4 << 10
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_SHIM = b"mooring-shim"
_NO_PROCESS = b'{"error":{"kind":"unavailable","message":"cannot fork another process"}}'
_ANSWER = b'{"pid":%d,"code":"%s"}'
_libc = ctypes.PyDLL(None)
# Called without Python's and ctypes' ceremony: what os.fork does for threads, and ctypes for
# letting others run, would cost each sleeping shim 0.1 MB. There is one thread, here and there.
_prctl = _libc.prctl
_fork = _libc.fork


def main(oci: Any = None) -> None:
    """Fork shims as the worker asks for them, until it closes its socket."""
    start = None
    if oci is None:
        from mooring.runtime.oci import container
        from mooring.runtime.oci.rehearsal import Rehearsal

        oci, start = container, Rehearsal
    code = version.digest()
    set_name(b"mooring-launch")
    os.closerange(CONTROL + 1, 1 << 20)
    os.set_inheritable(CONTROL, False)
    control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, CONTROL)
    _warm_up(start)
    # What a rehearsal has left open; a real start ends with its process.
    os.closerange(CONTROL + 1, 1 << 20)
    executable = machine.executable() if machine.available() else -1
    _be_nobodys()
    gc.collect()
    gc.freeze()
    gc.disable()
    # Between two forks as little as possible is done here: every page that this process writes to
    # is a page less that its shims share.
    while packet := control.recv(_PACKET_BYTES):
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        if packet == BARE:
            _fork_bare(control, ours, theirs, executable, code, oci)
            continue
        pid = _fork()
        if not pid:
            control.close()
            ours.close()
            if executable >= 0:
                close(executable)
            if packet == FACTORY:
                _be_factory(theirs)
            if packet.startswith(SUCCESSOR):
                _be_successor(packet[len(SUCCESSOR) :], theirs, code, oci)
            _be_shim(packet, theirs, oci)
        if pid < 0:
            control.send(_NO_PROCESS)
        else:
            control.sendmsg(
                [_ANSWER % (pid, code.encode())],
                [(SOL_SOCKET, SCM_RIGHTS, ours.fileno().to_bytes(4, "little"))],
            )
        ours.close()
        theirs.close()


def _fork_bare(
    control: socket, ours: socket, theirs: socket, executable: int, code: str, oci: Any
) -> None:
    channel, machines = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    # By its messages the worker learns the number of a process that it has not forked.
    channel.setsockopt(SOL_SOCKET, _SO_PASSCRED, 1)
    sleeper = epoll(flags=EPOLL_CLOEXEC)
    pid = _fork()
    if not pid:
        for each in (control, ours, channel):
            each.close()
        _be_bare(theirs, machines, sleeper, executable, oci)
    if pid < 0:
        control.send(_NO_PROCESS)
    else:
        fds = (ours.fileno(), channel.fileno(), sleeper.fileno())
        rights = b"".join([fd.to_bytes(4, "little") for fd in fds])
        control.sendmsg([_ANSWER % (pid, code.encode())], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    for socket_ in (ours, theirs, channel, machines):
        socket_.close()
    sleeper.close()


def _be_nobodys() -> None:
    """Once, here, what every shim inherits: its memory stays the smaller for it."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    # Nobody has to bury shims. One ends when its container has ended, not before: whoever means
    # the container says so. The launcher ends when its socket closes.
    for number in (SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM):
        set_signal(number, SIG_IGN)


def _be_shim(packet: bytes, worker: socket, oci: Any) -> None:
    """The child's life; it ends here."""
    try:
        name = open_file("/proc/self/comm", O_WRONLY)
        write(name, b"mooring-shim")
        close(name)
        set_signal(SIGCHLD, SIG_DFL)
        # What its helpers have started becomes its child when they end.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        sleeper = epoll(flags=EPOLL_CLOEXEC)
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        helper = _fork()
        if helper < 0:
            os._exit(1)  # The worker sees the end of its socket.
        if not helper:
            ours.close()
            os._exit(_help(packet, worker, theirs, sleeper, oci))
        worker.close()
        theirs.close()
        shim.main(oci, ours, sleeper, helper)
    except BaseException as error:
        _last_words(error)
        os._exit(1)
    os._exit(0)


def _be_factory(worker: socket) -> None:
    """The life of a process that works in network namespaces; it ends here.

    Most of the interpreter is shared with ours: one of its own was 5 MB more.
    """
    try:
        from mooring.runtime.network import factory

        set_name(b"mooring-netns")
        factory.main(worker)
    except BaseException as error:
        _last_words(error)
        os._exit(1)
    os._exit(0)


def _be_successor(directory: bytes, agent: socket, code: str, oci: Any) -> None:
    """The life of a shim in place of another; it ends here."""
    try:
        _prctl(_PR_SET_NAME, _SHIM, 0, 0, 0)
        set_signal(SIGCHLD, SIG_DFL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        adopt.succeed(os.fsdecode(directory), agent, code, oci)
    except BaseException as error:
        _last_words(error)
        os._exit(1)
    # The interpreter's own way out would take longer than the container may take to be removed.
    os._exit(0)


def _be_bare(worker: socket, channel: socket, sleeper: epoll, executable: int, oci: Any) -> None:
    """The life of a shim whose container another process makes; it ends here."""
    try:
        _prctl(_PR_SET_NAME, _SHIM, 0, 0, 0)
        set_signal(SIGCHLD, SIG_DFL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # The worker closes its end, or dies: then there is something to do. It need not be read
        # to be noticed, and what it sends is no reason to wake up.
        sleeper.register(worker.fileno(), EPOLLRDHUP)
        moves = [(POSIX_SPAWN_DUP2, channel.fileno(), CONTROL)]
        path = f"/proc/self/fd/{executable}"
        pid = posix_spawn(path, [machine.NAME], {}, file_actions=moves)
        channel.close()
        close(executable)
        # It makes the process that is to become the container a child of ours, and ends.
        waitpid(pid, 0)
        shim.main(oci, worker, sleeper, 0)
    except BaseException as error:
        _last_words(error)
        os._exit(1)
    os._exit(0)


def _help(packet: bytes, worker: socket, shim_: socket, sleeper: epoll, oci: Any) -> int:
    try:
        set_name(b"mooring-start")
        request, _ = packets.split(packet)
        if request.get("op") != "fork":
            raise ValueError(f"the launcher knows no operation {request.get('op')!r}")
        if directory := request.get("shim_cgroup"):
            for pid in (os.getppid(), os.getpid()):
                with open(f"{directory}/cgroup.procs", "wb", 0) as file:
                    file.write(b"%d" % pid)
        return warm.serve(worker, shim_, sleeper, request.get("cgroup"), oci)
    except Exception as error:
        _last_words(error)
        warm.answer(worker, warm.refused(error))
        return warm.NOTHING_STARTED


def _warm_up(start: Callable[[str], Any] | None) -> None:
    """Use once what shims will use (see rehearsal.py); where that fails they only cost more."""
    for _ in range(12):
        _prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    for directory in ("/dev/shm", "/tmp"):
        try:
            rehearse(directory, "mooring-launch-", start)
            return
        except Exception:
            continue


def _last_words(error: BaseException) -> None:
    """A bug of ours: where it happened goes to `shim.err` in the run directory (or /)."""
    import traceback

    if os.getcwd() == "/":
        return
    with open("shim.err", "w") as file:
        traceback.print_exception(error, file=file)
