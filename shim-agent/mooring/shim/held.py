"""What the agent holds of a container in case its shim is killed, and its successor."""

from __future__ import annotations

import os
from typing import Any

from .runs import Exec, Run
from .vestibule import Key

_NAMES = frozenset({"pidfd", "listener", "stdin", "stdout", "stderr", "outlet", "inlet", "master"})
_NAMES |= {"stage_in", "stage_out"}
_NAMES |= {f"{name}_{end}" for name in ("stdout", "stderr") for end in ("outlet", "inlet")}


def take(run: Run, fields: dict[str, Any], descriptors: list[int]) -> None:
    """Keep what came with a hello or an answer, in place of what was kept before."""
    named = _named(fields, descriptors)
    if not named:
        return
    if run.stdin_closed and (stdin := named.pop("stdin", None)) is not None:
        os.close(stdin)
    if run.pidfd >= 0:
        named.setdefault("pidfd", run.pidfd)
    same = run.kept and {**run.held, "pidfd": 0}.keys() == named.keys()
    if named["pidfd"] != run.pidfd and run.pidfd >= 0:
        os.close(run.pidfd)
    _close(run.held)
    run.pidfd = named.pop("pidfd", -1)
    run.held = named
    if not same:
        _keep_soon(run, "")


def take_exec(run: Run, id_: str, fields: dict[str, Any], descriptors: list[int]) -> None:
    """The same of an exec."""
    entry, named = run.exec(id_), _named(fields, descriptors)
    if not named:
        return
    if entry.finished:
        _close(named)
        return
    _close(entry.held)
    if entry.stdin_closed and (stdin := named.pop("stdin", None)) is not None:
        os.close(stdin)
    entry.held = named
    _keep_soon(run, id_)


def add(run: Run, id_: str, fields: dict[str, Any], descriptors: list[int]) -> None:
    """More of a run, or of an exec of it (`id_`), than what came before."""
    named = _named(fields, descriptors)
    holder = run.exec(id_) if id_ else run
    if not holder.held or not named:
        _close(named)
        return
    _close({name: holder.held.pop(name) for name in named if name in holder.held})
    holder.held |= named
    _keep_soon(run, id_)


def add_lane(run: Run, id_: str, fields: dict[str, Any], descriptors: list[int]) -> bool:
    """The lane of an output that is about to be used; whether the agent after this one has it."""
    add(run, id_, fields, descriptors)
    run.keeping.settle()
    holder = run.execs.get(id_) if id_ else run
    return holder is not None and bool(holder.kept) and bool(holder.held)


def find(run: Run) -> None:
    """Take what an agent before this one held of a run and its execs."""
    key = Key(run.container.id, run.number)
    kept, named = run.keeping.take(key)
    if named:
        run.kept, run.held = kept, named
        run.pidfd = named.pop("pidfd", -1)
        if os.path.exists(f"{run.directory}/stdin.closed"):
            stdin_closed(run)
    for id_ in run.keeping.execs(*key[:2]):
        kept, named = run.keeping.take(key._replace(exec=id_))
        if not os.path.exists(f"{run.directory}/execs/{id_}/exec.json"):
            # It ended and was forgotten.
            run.keeping.drop(kept)
            _close(named)
            continue
        entry = run.exec(id_)
        # Whether it was started its shim says, or the next one: it may never have been executed.
        entry.kept, entry.held = kept, named
        if os.path.exists(f"{run.directory}/execs/{id_}/stdin.closed"):
            stdin_closed(run, id_)


def stdin_closed(run: Run, exec_id: str = "") -> None:
    """It is to see the end of its stdin: nobody may hold its write end any more."""
    holder = run.exec(exec_id) if exec_id else run
    holder.stdin_closed = True
    if (stdin := holder.held.pop("stdin", None)) is None:
        return
    os.close(stdin)
    _keep_soon(run, exec_id, less=True)


def take_left(run: Run) -> None:
    """Take what a shim that was killed has left of execs and could not tell of."""
    for key, named in run.keeping.left_of(Key(run.container.id, run.number)):
        entry = run.exec(key.exec)
        if entry.held or entry.finished:
            _close(named)
        else:
            entry.held = named
            _keep_soon(run, key.exec)


def drop(run: Run) -> None:
    """Close what is held of a run that is over, and of its execs."""
    for _, named in run.keeping.left_of(Key(run.container.id, run.number)):
        _close(named)
    _close(run.held)
    run.keeping.drop(run.kept)
    run.kept = ""
    for entry in run.execs.values():
        drop_exec(run, entry)


def drop_exec(run: Run, entry: Exec) -> None:
    """Close what is held of an exec that is over."""
    _close(entry.held)
    run.keeping.drop(entry.kept)
    entry.kept = ""


def _keep_soon(run: Run, exec_id: str, *, less: bool = False) -> None:
    key = Key(run.container.id, run.number, exec_id)
    run.keeping.soon(key, _all(run, exec_id), lambda: _keep(run, key), less=less)


def _keep(run: Run, key: Key) -> None:
    holder = run.execs.get(key.exec) if key.exec else run
    if holder is None or not holder.held:
        return  # It was over before.
    holder.kept = run.keeping.keep(key, _all(run, key.exec), holder.kept)


def _all(run: Run, exec_id: str) -> dict[str, int]:
    return run.execs[exec_id].held if exec_id else {**run.held, "pidfd": run.pidfd}


def _named(fields: dict[str, Any], descriptors: list[int]) -> dict[str, int]:
    names = fields.get("names") or ()
    named = dict(zip(names, descriptors, strict=False))
    for descriptor in descriptors[len(named) :]:
        os.close(descriptor)
    for name in [name for name in named if name not in _NAMES]:
        os.close(named.pop(name))
    return named


def _close(held: dict[str, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)
    held.clear()
