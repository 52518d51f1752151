"""What a shim writes into its run directory, and the faults that tests inject into it."""

from __future__ import annotations

import os

from .packets import dump
from .rawsignal import SIGKILL

BUSY = "busy"
"""The file that says who is at work on a half-made run: it is not made again before that ends."""
_faults = os.environ.get("MOORING_FAULTS", "")


def fault(name: str) -> None:
    """Die here (SIGKILL) if a test asked for it by a file of this name, once."""
    if _faults:
        path = f"{_faults}/{name}"
        if os.path.exists(path):
            os.unlink(path)
            os.kill(os.getpid(), SIGKILL)


def arm_faults(directory: str) -> str:
    """Look for faults in another directory (empty: nowhere); returns the one before."""
    global _faults
    before, _faults = _faults, directory
    return before


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with its pid, a name for ever."""
    with open(f"/proc/{pid}/stat", "rb", 0) as file:
        text = file.read(1024)
    # The command's name, in parentheses, may hold blanks and parentheses itself.
    return int(text[text.rindex(b")") + 2 :].split(None, 20)[19])


def write_record(path: str, record: dict[str, object]) -> None:
    """Write JSON in one step: whoever reads sees all of it or nothing."""
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, dump(record))
    finally:
        os.close(fd)
    os.rename(temporary, path)


def claim(inode: int) -> bool:
    """Say that this process is at work on the run whose directory this one works in.

    False if it is not that run's any more: the worker has taken a half-made run's directory away
    (it does not wait for who comes too late), or made another one of the same name since.
    """
    if os.stat(".").st_ino != inode:
        return False
    pid = os.getpid()
    try:
        write_record(BUSY, {"pid": pid, "start": start_time(pid)})
    except FileNotFoundError:
        return False
    return True


def mark_executed() -> None:
    """Leave the file that says: the program of this run was executed."""
    os.close(os.open("executed", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def remove_tree(directory: str) -> None:
    """Delete a directory of ours with all in it; one that is gone is fine."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        path = f"{directory}/{name}"
        try:
            os.unlink(path)
        except IsADirectoryError:
            remove_tree(path)
    os.rmdir(directory)
