"""Which sessions there are: begun, kept with the process manager, found again, ended.

An errand is a session without a client: what a successor has to put right if we are killed now.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple, Protocol

from mooring.gateway.http.wire import HangupWatch

from .pipes import Pipe
from .plans import Plan
from .slots import ERRAND, Slots
from .wire import DurableWire

logger = logging.getLogger(__name__)

_TABLE = "sessions"


class Keeper(Protocol):
    """What keeps descriptors for us; see kit.process.Service."""

    def store(self, name: str, descriptor: int) -> None: ...
    def unstore(self, name: str) -> None: ...
    def stored(self) -> dict[str, list[int]]: ...


class Beginning(NamedTuple):
    """What a session is, and where its output is before the first byte."""

    plan: Plan
    sent: bytes = b""


CarryOn = Callable[[bytes, Callable[[bytes], DurableWire]], Awaitable[None]]
RunErrand = Callable[[bytes], Awaitable[None]]


class Sessions:
    """The sessions of one gateway. `resume` is called for each that another process began."""

    def __init__(self, keeper: Keeper, watch: HangupWatch) -> None:
        self._keeper = keeper
        self._watch = watch
        self._kept = keeper.stored()
        self._tasks: dict[int, asyncio.Task[None] | None] = {}
        self._frozen = False
        found = self._kept.pop(_TABLE, [])
        self._slots = Slots(found[0] if found else -1)
        if not found:
            keeper.store(_TABLE, self._slots.descriptor)
        self._left = list(self._slots.used())
        """Those that another process began; from here on clients come that are ours."""
        self._pipes: dict[int, tuple[Pipe, Pipe]] = {}
        used = set(self._slots.used())
        for number in {*self._numbers("out"), *self._numbers("in")}:
            self._find_pipes(number)
            if number not in used:
                # The head of an answer may be in it, of a session that did not begin.
                self._drop_pipes(number)
        # What began or ended in the very moment in which we were killed.
        for number in set(self._numbers("client")) - used:
            keeper.unstore(f"client.{number}")
            for descriptor in self._kept.pop(f"client.{number}"):
                os.close(descriptor)

    def _find_pipes(self, number: int) -> None:
        names = [f"{kind}.{number}" for kind in ("out", "in")]
        found = [self._kept.pop(name, []) for name in names]
        if all(len(ends) == 2 for ends in found):
            self._pipes[number] = Pipe.of(found[0]), Pipe.of(found[1])
            return
        # We were killed while they were being kept: new ones would be mixed up with these.
        for name, ends in zip(names, found, strict=True):
            self._keeper.unstore(name)
            for descriptor in ends:
                os.close(descriptor)

    def _numbers(self, kind: str) -> Iterator[int]:
        for name in self._kept:
            before, _, number = name.partition(".")
            if before == kind and number.isdecimal():
                yield int(number)

    def begin(
        self, sock: socket.socket, early: bytes, beginning: Beginning, head: bytes = b""
    ) -> DurableWire | None:
        """Make a session of a client's socket; None if there is no room for it.

        head: the first that it is sent, by the first `flush`: whoever goes on sends it, too.
        """
        plan = beginning.plan
        plan.early = early
        number = self._slots.take(plan.pack())
        if number is None:
            return None
        wire = self._wire(number, sock, early)
        wire.begin(beginning.sent, head)
        self._keeper.store(f"client.{number}", sock.fileno())
        self._slots.use(number)
        self._tasks[number] = asyncio.current_task()
        return wire

    def undertake(self, plan: Plan) -> int | None:
        """Note an errand; the number to say that it is `done`, None if there is no room."""
        number = self._slots.take(plan.pack())
        if number is not None:
            self._slots.use(number, ERRAND)
        return number

    def done(self, number: int) -> None:
        """Nobody need run this errand."""
        self._slots.free(number)

    async def resume(self, carry_on: CarryOn, run: RunErrand) -> None:
        """Go on with every session that was left; returns when all of them are over.

        carry_on gets the session's description, and what makes its wire of what had arrived early;
        run gets the description of an errand.
        """
        async with asyncio.TaskGroup() as tasks:
            for number in self._left:
                if self._slots.kind(number) == ERRAND:
                    tasks.create_task(self._run(number, run))
                    continue
                clients = self._kept.pop(f"client.{number}", [])
                description = self._slots.description(number)
                if not clients or number not in self._pipes or not description:
                    # The client has gone meanwhile, or it was another version's.
                    self._end(number)
                    continue
                sock = socket.socket(fileno=clients[0])
                sock.setblocking(False)
                task = tasks.create_task(self._carry_on(number, sock, description, carry_on))
                self._tasks[number] = task

    async def _carry_on(
        self,
        number: int,
        sock: socket.socket,
        description: bytes,
        carry_on: CarryOn,
    ) -> None:
        wire: DurableWire | None = None

        def make(early: bytes) -> DurableWire:
            nonlocal wire
            wire = self._wire(number, sock, early)
            wire.recover()
            return wire

        try:
            await carry_on(description, make)
        except ConnectionError:
            pass
        except Exception:
            # A client that is told nothing more is better off with an end than with silence.
            logger.exception("a session cannot go on")
        finally:
            if wire is not None:
                await wire.close()

    async def _run(self, number: int, run: RunErrand) -> None:
        try:
            if description := self._slots.description(number):
                await run(description)
        except Exception:
            logger.exception("an errand is not done")
        self.done(number)

    def tasks(self) -> set[asyncio.Task[None]]:
        """What serves the sessions."""
        return {task for task in self._tasks.values() if task is not None}

    def freeze(self) -> None:
        """This process is about to end, and another one to follow: leave every session to it."""
        self._frozen = True
        for task in self._tasks.values():
            if task is not None:
                task.cancel()

    def close(self) -> None:
        """Let go of everything; what is kept is kept."""
        for pair in self._pipes.values():
            for pipe in pair:
                pipe.close()
        self._pipes.clear()
        self._slots.close()

    def _wire(self, number: int, sock: socket.socket, early: bytes) -> DurableWire:
        if (pipes := self._pipes.get(number)) is None:
            pipes = self._pipes[number] = (Pipe.new(), Pipe.new())
            for name, pipe in zip(("out", "in"), pipes, strict=True):
                for descriptor in pipe.ends():
                    self._keeper.store(f"{name}.{number}", descriptor)
        halves = self._slots.output(number), self._slots.input(number)
        return DurableWire(
            sock,
            early,
            self._watch,
            (halves[0], pipes[0]),
            (halves[1], pipes[1]),
            lambda: self._end(number),
        )

    def _end(self, number: int) -> bool:
        """A session is over; False if it is left to a successor."""
        if self._frozen:
            return False
        self._tasks.pop(number, None)
        # First: from here on nobody takes it up again.
        self._slots.free(number)
        self._keeper.unstore(f"client.{number}")
        self._drop_pipes(number)
        return True

    def _drop_pipes(self, number: int) -> None:
        for pipe in self._pipes.get(number, ()):
            pipe.drop()
