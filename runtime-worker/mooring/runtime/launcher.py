"""The launcher: a tiny process, kept warm by the worker, that forks a shim for each container.

Everything a shim needs is imported here once and shared by all shims, so what is not needed must
not be imported: every page that a shim writes to is its own.
"""

from __future__ import annotations

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

from mooring.shim import packets, shim
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONTROL = 3
"""The descriptor of the worker's socket. When it closes, the launcher ends; its shims go on."""

_PACKET_BYTES = 64 << 10


def main(oci: Any = None) -> None:
    """Fork shims as the worker asks for them, until it closes its socket."""
    if oci is None:
        from mooring.runtime.oci import container

        oci = container
    _name("mooring-launch")
    os.closerange(CONTROL + 1, 1 << 20)
    os.set_inheritable(CONTROL, False)
    _null_streams()
    # Whoever started us may end; a shim is nobody's job to reap.
    set_signal(SIGCHLD, SIG_IGN)
    control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, CONTROL)
    gc.collect()
    gc.freeze()
    gc.disable()
    while packet := control.recv(_PACKET_BYTES):
        try:
            request, _ = packets.split(packet)
            if request.get("op") != "fork":
                raise ValueError(f"the launcher knows no operation {request.get('op')!r}")
            _fork(control, request, oci)
        except (ValueError, OSError) as error:
            control.send(packets.dump({"error": {"kind": "internal", "message": str(error)}}))


def _fork(control: socket, request: dict[str, Any], oci: Any) -> None:
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            control.close()
            ours.close()
            _become_shim(request)
            shim.serve(theirs, request.get("cgroup"), oci)
        except BaseException as error:
            _last_words(error)
            os._exit(1)
        os._exit(0)
    theirs.close()
    with_socket = [(SOL_SOCKET, SCM_RIGHTS, ours.fileno().to_bytes(4, "little"))]
    control.sendmsg([packets.dump({"pid": pid})], with_socket)
    ours.close()


def _become_shim(request: dict[str, Any]) -> None:
    os.setsid()
    os.dup2(0, 2)
    os.chdir("/")
    os.umask(0o022)
    set_signal(SIGCHLD, SIG_DFL)
    # A shim ends when its container has ended, not before: those who mean the container say so.
    for number in (SIGHUP, SIGINT, SIGQUIT, SIGTERM):
        set_signal(number, SIG_IGN)
    _name("mooring-shim")
    if directory := request.get("shim_cgroup"):
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))


def _null_streams() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _name(name: str) -> None:
    with open("/proc/self/comm", "w") as file:
        file.write(name)


def _last_words(error: BaseException) -> None:
    """A bug of ours: where it happened goes to `shim.err` in the run directory (or /)."""
    import traceback

    if os.getcwd() == "/":
        return
    with open("shim.err", "w") as file:
        traceback.print_exception(error, file=file)
