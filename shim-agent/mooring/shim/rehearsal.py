"""What a shim will do, done once by the launcher before it forks any.

The interpreter writes to its own memory when code and types are first used (types are made ready,
bytecode is specialised in place). Done here, the pages this touches stay shared by all shims:
without it an idle shim has 0.3 MB more of its own, and a start takes longer.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair
from fcntl import LOCK_EX, LOCK_NB, flock
from select import EPOLL_CLOEXEC, epoll
from time import time, time_ns

from .control import Connection, listen, receive_with, send_with
from .log import LogWriter
from .loop import READ, Loop
from .packets import dump, join, parse, split
from .processes import Streams, open_input, record_streams
from .record import arm_faults, mark_executed, remove_tree, start_time, write_record
from .shim import Shim
from .stdio import Recorder
from .warm import Start, answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SECONDS = 10.0
"""No rehearsal takes as long."""
_ROUNDS = 12
"""The interpreter specialises a function's code when it has run eight times."""


def rehearse(parent: str, prefix: str, start: Callable[[str], Any] | None = None) -> None:
    """Go through the motions in a new directory, and leave nothing: not even what those left who
    were killed at it. Raises what went wrong.

    start: makes a runtime that only pretends, in a directory (mooring.runtime.oci.rehearsal).
    """
    for name in os.listdir(parent):
        if name.startswith(prefix):
            _remove_left(f"{parent}/{name}")
    directory = f"{parent}/{prefix}{os.getpid()}.{time_ns()}"
    os.mkdir(directory, 0o700)
    # Others may be in another pid namespace, where a pid says nothing: the lock is the owner's.
    lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    flock(lock, LOCK_EX)
    before = os.getcwd()
    os.chdir(directory)
    # A fault is meant for a shim, not for who plays one.
    faults = arm_faults("")
    try:
        for number in range(_ROUNDS):
            _sleep()
            _record(number)
            _talk()
            _live(number)
        if start is not None:
            runtime = start(f"{directory}/start")
            for number in range(_ROUNDS):
                _start(directory, number, runtime)
    finally:
        arm_faults(faults)
        os.chdir(before)
        remove_tree(directory)
        os.close(lock)


def _remove_left(directory: str) -> None:
    """What somebody has left who was killed; not what is in use, or was made this moment."""
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if _age(lock) > _SECONDS:
            flock(lock, LOCK_EX | LOCK_NB)
            remove_tree(directory)
    except OSError:
        pass
    finally:
        os.close(lock)


def _age(fd: int) -> float:
    """Seconds since the last change of a directory."""
    return time() - os.fstat(fd).st_mtime


def _sleep() -> None:
    sleeper = epoll(flags=EPOLL_CLOEXEC)
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    sleeper.register(ours.fileno(), READ)
    send_with(theirs, join({"names": ["sleeper"]}), [sleeper.fileno()])
    sleeper.poll(None, 1)
    packet, fds = receive_with(ours, 1 << 10)
    named = dict(zip(parse(packet)["names"], fds, strict=True))
    os.close(named["sleeper"])
    sleeper.unregister(ours.fileno())
    sleeper.close()
    ours.close()
    theirs.close()


def _record(number: int) -> None:
    log = LogWriter("log", 1 << 20, 2)
    log.begin_run(number)
    loop = Loop()
    recorder = Recorder(loop, log)
    streams = Streams(tty=False, wants_input=True, wants_output=True)
    record_streams(recorder, streams.ours)
    stdin = open_input(loop, streams.ours, True, True, ".")
    recorder.start()
    os.write(streams.child[1], b"line\n")
    streams.close_child()
    recorder.on_drained = loop.stop
    loop.run()
    stdin.close()
    log.end_run(dump({"run": number, "exit_code": 0}))
    recorder.close()
    start_time(os.getpid())
    write_record("record.json", {"text": "text", "number": 1, "float": 1.5, "none": None})


class _Cgroup:
    """What a shim asks of a cgroup, without one."""

    @staticmethod
    def frozen() -> bool:
        """Nothing is."""
        return False

    @staticmethod
    def oom_kills() -> int:
        """None."""
        return 0

    @staticmethod
    def kill() -> None:
        """Nothing to kill."""

    @staticmethod
    def remove() -> None:
        """Nothing to remove."""


class _Runtime:
    """What a shim asks of the runtime, without one."""

    class cgroups:
        """As mooring.runtime.oci.cgroups."""

        @staticmethod
        def attach(path: str) -> _Cgroup:
            """The cgroup that is none."""
            return _Cgroup()

    class Running:
        """As mooring.runtime.oci.container.Running."""

        def __init__(self, pid: int, pidfd: int, master: int | None, cgroup: _Cgroup) -> None:
            self.cgroup = cgroup


def _live(number: int) -> None:
    """A whole run: a program that prints and ends, watched by an agent."""
    streams = Streams(tty=False, wants_input=True, wants_output=True)
    pid = os.fork()
    if not pid:
        # Its own copy would keep it waiting for ever if this process were killed.
        os.close(streams.ours["stdin"])
        os.read(streams.child[0], 1)
        os.write(streams.child[1], b"line\n")
        os._exit(0)
    streams.close_child()
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    listener = listen("shim.sock")
    fds = {**streams.ours, "pidfd": os.pidfd_open(pid), "listener": listener.detach()}
    fds["agent"] = ours.detach()
    record: dict[str, Any] = {"id": "rehearsal", "run": number, "init_pid": pid, "started_ns": 0}
    record |= {"log_dir": "log", "log_max_size": 1 << 20, "log_max_files": 2, "cgroup": "/none"}
    record |= {"stdin": True, "stdin_once": True, "own_pids": number % 2 == 0}
    shim = Shim(_Runtime, record, fds)
    shim.take_over(True)
    theirs.send(join({"op": "hello", "id": 1}))
    theirs.send(join({"op": "descriptors", "id": 2}))
    theirs.send(join({"op": "watch_log", "id": 3, "after": shim.recorder.log.end}))
    theirs.send(join({"op": "stdin", "id": 4, "session": "s", "offset": 0}, b"x"))
    theirs.send(join({"op": "nonsense", "id": 5}))
    shim.loop.run()
    while True:
        packet, held = receive_with(theirs, 64 << 10)
        for fd in held:
            os.close(fd)
        if not packet:
            break
    theirs.close()


def _start(directory: str, number: int, runtime: Any) -> None:
    """A whole start, with a runtime that executes nothing."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    sleeper = epoll(flags=EPOLL_CLOEXEC)
    run = f"{directory}/{number}"
    os.mkdir(run)
    with open(f"{run}/config.json", "wb", 0) as file:
        file.write(dump(runtime.configuration))
    request: dict[str, Any] = {
        "op": "start",
        "id": "rehearsal",
        "run": number,
        "dir": run,
        "inode": os.stat(run).st_ino,
        "bundle": run,
        "log_dir": f"{run}/log",
        "log_max_size": 1 << 20,
        "log_max_files": 2,
        "tty": False,
        "stdin": number % 2 == 0,
        "stdin_once": False,
        "rootfs": runtime.rootfs,
        "cgroup": runtime.cgroup,
        "seccomp": None,
        "agent_socket": f"{run}/shim.sock",
        "console_size": None,
        "timings": False,
    }
    start = Start(parse(dump(request)), runtime, theirs, sleeper, None)
    answer(theirs, start.run())
    mark_executed()
    for _ in range(3):
        for fd in receive_with(ours, 64 << 10)[1]:
            os.close(fd)
    start.forget()
    for each in (ours, theirs, sleeper):
        each.close()
    os.chdir(directory)


def _talk() -> None:
    loop = Loop()
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)

    def handle(connection: Connection, request: dict[str, Any], raw: bytes) -> None:
        connection.answer(request, {"done": bool(raw)})
        loop.stop()

    connection = Connection(loop, ours, handle, lambda _: None)
    theirs.send(join({"op": "hello", "id": 1}, b"raw"))
    loop.run()
    split(theirs.recv(1 << 10))
    connection.close()
    theirs.close()
