"""A shim that takes the place of one that was killed. Standard library only.

The agent starts it in the run directory with the descriptors that it held for this case:

    agent                    first process            shim
      | --- exec, fds -------> | --- fork ------------> |  locks the run, takes everything over
      |                        | <-- "y" (it listens) - |  and is in shim.json
      | <-- exit status 0 ---- |                        |  goes on for as long as the container
"""

from __future__ import annotations

import os
import sys
from fcntl import LOCK_EX, LOCK_NB, flock

from .packets import parse
from .rawsignal import SIG_IGN, SIGHUP, SIGINT, SIGQUIT, SIGTERM
from .rawsignal import signal as set_signal
from .record import start_time, write_record
from .shim import Shim
from .warm import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """`directory name=fd…`; exit status 0 once the new shim serves the container."""
    directory, *pairs = sys.argv[1:]
    fds = {name: int(number) for name, _, number in (pair.partition("=") for pair in pairs)}
    ready, told = os.pipe()
    if os.fork():
        os.close(told)
        os._exit(0 if os.read(ready, 1) else 1)
    os.close(ready)
    os.setsid()
    shim = take_over(directory, fds)
    os.write(told, b"y")
    os.close(told)
    shim.loop.run()
    # The interpreter's own way out would take longer than the container may take to be removed.
    os._exit(0)


def take_over(directory: str, fds: dict[str, int]) -> Shim:
    """The shim of a run whose first shim is gone. Raises if another one serves it already.

    fds: its descriptors by name, and those of its execs as `<name>.<exec>`.
    """
    from mooring.runtime.oci import container
    from mooring.runtime.oci.linux import prctl

    os.chdir(directory)
    os.umask(0o022)
    # Held for as long as this process lives: two agents must not start two shims.
    lock = os.open("adopted", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    flock(lock, LOCK_EX | LOCK_NB)
    record: dict[str, Any] = parse(read("shim.json"))
    for number in (SIGHUP, SIGINT, SIGQUIT, SIGTERM):
        set_signal(number, SIG_IGN)
    _name(b"mooring-shim")
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for fd in fds.values():
        os.set_inheritable(fd, False)
    execs: dict[str, dict[str, int]] = {}
    for name in [name for name in fds if "." in name]:
        stream, _, ident = name.partition(".")
        execs.setdefault(ident, {})[stream] = fds.pop(name)
    record |= {"shim_pid": os.getpid(), "shim_start": start_time(os.getpid())}
    shim = Shim(container, record, fds)
    shim.take_over(True)
    for ident, streams in execs.items():
        shim.take_over_exec(ident, streams)
    write_record("shim.json", record)
    return shim


def _name(name: bytes) -> None:
    with open("/proc/self/comm", "wb", 0) as file:
        file.write(name)
