"""Containers whose shim was killed: the kernel remembers how their init ended.

A pidfd that was opened while the process lived gives its exit status after it was reaped by
whomever (ioctl PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15). Older kernels: nobody can tell.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import sys
import time

from .rundir import EXIT, ExitRecord, Process, ShimRecord, write_json

_PIDFD_INFO = struct.Struct("<QQ11Ii")
"""struct pidfd_info: mask, cgroupid, pid … fsgid, exit_code; 64 bytes."""
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3

_REAP_LOOKS = 250
UNKNOWN = "exit status lost: the shim was killed"


def open_init(init: Process) -> int:
    """A pidfd of a container's init; -1 if it has ended (and its pid may be another's by now)."""
    try:
        pidfd = os.pidfd_open(init.pid)
    except OSError:
        return -1
    # Checked after opening: from here on the descriptor stands for this very process.
    if init.alive():
        return pidfd
    os.close(pidfd)
    return -1


def exit_status(pidfd: int) -> int | None:
    """The wait status of a process that was reaped; None if it was not, or if nobody can tell."""
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, *([0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(buffer)
    return status if mask & _PIDFD_INFO_EXIT else None


def tells_exits() -> bool:
    """Whether this kernel tells who holds a pidfd how a process ended that was reaped by another.

    Tried out with a process of our own, which takes some milliseconds.
    """
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", ""], {})
    pidfd = os.pidfd_open(pid)
    try:
        os.waitpid(pid, 0)
        return exit_status(pidfd) is not None
    finally:
        os.close(pidfd)


async def exit_code(pidfd: int) -> int | None:
    """Wait for the end of a process that is no shim's child any more; 128+n for a signal."""
    if pidfd < 0:
        return None
    await readable(pidfd)
    for _ in range(_REAP_LOOKS):
        if (status := exit_status(pidfd)) is not None:
            break
        # Readable when it is a zombie; told only once its new parent has reaped it.
        await asyncio.sleep(0.02)
    else:
        return None
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


async def wait(pidfd: int, record: ShimRecord) -> ExitRecord:
    """Wait for the end of an init that has no shim any more, and say how it ended."""
    code = await exit_code(pidfd)
    return ExitRecord(
        run=record.run,
        pid=record.init.pid,
        started_ns=record.started_ns,
        finished_ns=time.time_ns(),
        exit_code=code,
        error=UNKNOWN if code is None else "",
    )


def keep(directory: str, id_: str, exited: ExitRecord) -> None:
    """Write the exit record in the shim's stead."""
    fields = {
        "version": 1,
        "id": id_,
        "run": exited.run,
        "pid": exited.pid,
        "started_ns": exited.started_ns,
        "finished_ns": exited.finished_ns,
        "exit_code": exited.exit_code,
        "oom_killed": exited.oom_killed,
        "error": exited.error,
    }
    try:
        write_json(f"{directory}/{EXIT}", fields)
    except FileNotFoundError:
        # The run directory is gone: the container was removed by force meanwhile.
        pass


async def readable(descriptor: int) -> None:
    """Wait until a descriptor is readable, as a pidfd is when its process has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
