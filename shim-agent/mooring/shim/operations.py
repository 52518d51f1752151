"""What a shim does when asked at its socket: one function for each operation of the protocol."""

from __future__ import annotations

from os import close
from os import kill as send_signal

from .control import send_to
from .packets import dump
from .processes import resize
from .rawsignal import SIGKILL, pidfd_send_signal
from .record import remove_tree
from .stdin import Busy, Gap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .control import Connection
    from .execs import Exec
    from .shim import Shim
    from .stdin import Input
    from .stdio import Recorder

    Request = dict[str, Any]


class Refusal(Exception):
    """A request that is answered with an error; `kind` is one of kit.errors."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _hello(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    connection.answer(request, shim.hello())


def _watch_log(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    recorder, after = _recorder(shim, request), int(request["after"])
    connection.answer(request)
    recorder.arm(after, connection)


def _stdin(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    stdin: Input = _exec(shim, request["exec"]).input if request.get("exec") else shim.input

    if request.get("hold") and (fds := stdin.stage()):
        # Before a byte is in it: whoever holds the rest is to hold this too.
        event = {"event": "held", "exec": request.get("exec") or "", "names": list(fds)}
        connection.send_with(event, list(fds.values()))

    def answer(offset: int, closed: bool) -> None:
        connection.answer(request, {"offset": offset, "closed": closed})

    try:
        stdin.write(
            request["session"], int(request["offset"]), raw, bool(request.get("eof")), answer
        )
    except Gap as gap:
        raise Refusal("conflict", str(gap)) from None
    except Busy:
        raise Refusal("unavailable", "the container does not read its input") from None


def _stage(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    stdin: Input = _exec(shim, request["exec"]).input if request.get("exec") else shim.input
    stdin.stage()
    held = stdin.staged()
    if not connection.answer_with(request, {"names": list(held)}, list(held.values())):
        raise Refusal("unavailable", "the connection has no room for descriptors")


def _resize(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    rows, columns = int(request["rows"]), int(request["columns"])
    if request.get("exec"):
        _exec(shim, request["exec"]).resize(rows, columns)
    elif shim.master >= 0:
        resize(shim.master, rows, columns)
    connection.answer(request)


def _kill(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    signal = int(request["signal"])
    cgroup = shim.cgroup
    try:
        if not request.get("all"):
            pidfd_send_signal(shim.pidfd, signal)
        elif signal == SIGKILL:
            cgroup.kill()
        else:
            for pid in cgroup.pids():
                send_signal(pid, signal)
    except ProcessLookupError:
        raise Refusal("conflict", f"container {shim.id} is not running") from None
    if signal == SIGKILL and shim.paused:
        # On cgroup v1 a frozen process does not even die.
        cgroup.thaw()
    connection.answer(request)


def _pause(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    # A frozen process can't even be buried, on cgroup v1.
    shim.beginnings.abandon()
    shim.cgroup.freeze()
    connection.answer(request)


def _resume(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    shim.cgroup.thaw()
    connection.answer(request)


def _start_exec(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    ident = request["exec"]
    if not _is_exec(ident):
        raise Refusal("invalid_parameter", f"not an exec id: {ident}")

    def answer(result: dict[str, Any]) -> None:
        drop()
        if entry is None or "error" in result:
            connection.refuse(request, result["error"])
        else:
            fds = entry.descriptors() if request.get("hold") and not told else {}
            more = {**result, "names": list(fds)}
            if not connection.answer_with(request, more, list(fds.values())):
                connection.answer(request, result)

    told, porch = False, -1

    def leave(named: dict[str, int]) -> None:
        """Whenever this agent is killed, the next one has these."""
        nonlocal porch
        if porch >= 0:
            packet = dump([shim.id, shim.run, ident, *named])
            send_to(porch, packet, list(named.values()))
            porch = -1

    def drop() -> None:
        nonlocal porch
        if porch >= 0:
            close(porch)
            porch = -1

    def about_to(fds: dict[str, int]) -> None:
        nonlocal told
        leave(fds)
        if request.get("hold"):
            event = {"event": "exec_begins", "exec": ident, "names": list(fds)}
            told = connection.send_with(event, list(fds.values()))

    entry = shim.execs.get(ident)
    if entry is None:
        if shim.paused:
            # A process that joins a frozen cgroup stops half made.
            text = f"Container {shim.id} is paused, unpause the container before exec"
            raise Refusal("conflict", text)
        entry = shim.new_exec(ident, bool(request["tty"]))
        porch = connection.take()
        try:
            shim.beginnings.begin(entry, request, about_to, lambda: shim.execs.pop(ident))
        except BaseException:
            drop()
            raise
        shim.execs[ident] = entry
    # Asked again, by an agent that did not hear the answer, it is the same exec.
    entry.when_started(answer)


def _prepare_exec(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    ident = request["exec"]
    if _is_exec(ident) and ident not in shim.execs and not shim.paused:
        shim.beginnings.prepare(ident, request)


def _lane(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    _recorder(shim, request).use_lane(int(request["stream"]))
    connection.answer(request)


def _exec_trim(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    recorder = _exec(shim, request["exec"]).recorder
    if recorder is not None:
        recorder.trim(int(request["offset"]))
    connection.answer(request)


def _pin(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    readers = {str(name): int(offset) for name, offset in request["readers"].items()}
    connection.answer(request, {"first": shim.pins.pin(connection, readers)})


def _exec_forget(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    entry = shim.execs.get(request["exec"])
    if entry is not None:
        if entry.running:
            raise Refusal("conflict", f"exec {entry.id} is running")
        del shim.execs[entry.id]
        entry.discard()
    elif _is_exec(request["exec"]):
        # It ended under a shim that was killed.
        remove_tree(f"execs/{request['exec']}")
    connection.answer(request)


def _pids(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    prepared = shim.beginnings.prepared
    connection.answer(request, {"pids": [pid for pid in shim.cgroup.pids() if pid not in prepared]})


def _stats(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    connection.answer(request, {"stats": shim.cgroup.stats()})


def _update(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    shim.cgroup.apply(request["resources"])
    connection.answer(request)


def _descriptors(shim: Shim, connection: Connection, request: Request, raw: bytes) -> None:
    if request.get("exec"):
        held = _exec(shim, request["exec"]).descriptors()
    else:
        held = shim.descriptors()
    if not connection.answer_with(request, {"names": list(held)}, list(held.values())):
        raise Refusal("unavailable", "the connection has no room for descriptors")


def _is_exec(ident: str) -> bool:
    return bool(ident) and "/" not in ident and ident not in (".", "..")


def _exec(shim: Shim, ident: str) -> Exec:
    entry = shim.execs.get(ident)
    if entry is None:
        raise Refusal("not_found", f"No such exec instance: {ident}")
    return entry


def _recorder(shim: Shim, request: Request) -> Recorder:
    if not request.get("exec"):
        return shim.recorder
    recorder = _exec(shim, request["exec"]).recorder
    if recorder is None:
        raise Refusal("conflict", f"the output of exec {request['exec']} is not kept")
    return recorder


OPERATIONS: dict[str, Callable[[Shim, Connection, Request, bytes], None]] = {
    "hello": _hello,
    "watch_log": _watch_log,
    "stage": _stage,
    "lane": _lane,
    "stdin": _stdin,
    "resize": _resize,
    "kill": _kill,
    "pause": _pause,
    "resume": _resume,
    "exec": _start_exec,
    "exec_prepare": _prepare_exec,
    "exec_trim": _exec_trim,
    "pin": _pin,
    "exec_forget": _exec_forget,
    "pids": _pids,
    "stats": _stats,
    "update": _update,
    "descriptors": _descriptors,
}
