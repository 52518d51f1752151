"""A client's socket that a successor can take up at the byte.

Output: `send(data, state)` writes data into a pipe and splices it from there to the socket.

    state: moving `count` bytes, then `state`      kill → the pipe is empty: nothing was written,
    write(pipe)                                            the state before holds;
                                                           the pipe has all: the new one holds
    state: at rest at `state`                      kill → what the pipe still has was not sent
    splice(pipe → socket)

Input: bytes are peeked and handed on; once they are acknowledged, `consume(count, state)` takes
them out of the socket, through another pipe that counts how many of them are out already.

    state: moving `count` bytes, then `state`      kill → count less what the pipe has is to be
    splice(socket → pipe)                                  taken out still
      (pipe full: state: emptying, what is left    kill → all of that is to be taken out still)
    state: at rest at `state`
    the pipe is emptied                            kill → what it has counts no more
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from mooring.gateway.http.wire import PEEK

from .slots import AT_REST, EMPTYING, MOVING, Half, State

if TYPE_CHECKING:
    from mooring.gateway.http.wire import HangupWatch

    from .pipes import Pipe

_DRAIN_ROUNDS = 64


class DurableWire:
    """See Wire; states are whatever its user needs to go on, of at most slots.STATE bytes."""

    def __init__(
        self,
        sock: socket.socket,
        early: bytes,
        watch: HangupWatch,
        outgoing: tuple[Half, Pipe],
        incoming: tuple[Half, Pipe],
        at_close: Callable[[], bool],
    ) -> None:
        self._socket = sock
        self._early = early
        """What had arrived with the request; all of it is part of the input."""
        self._watch = watch
        self._out, self._out_pipe = outgoing
        self._in, self._in_pipe = incoming
        self._at_close = at_close
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.limit: int | None = self._out_pipe.capacity
        self.gone = watch.add(sock.fileno())

    # --- taking up what another process left ---

    def recover(self) -> None:
        """Make both states true again after a kill; `flush` then sends what is left."""
        state = self._out.get()
        if state.phase != AT_REST:
            state = state if self._out_pipe.held() else self._out.before()
            self._out.set(State(state.value))
        state = self._in.get()
        if state.phase == AT_REST:
            self._in_pipe.drop()
        else:
            self._take(state)

    @property
    def sent(self) -> bytes:
        """The state of the output."""
        return self._out.get().value

    @property
    def consumed(self) -> bytes:
        """The state of the input."""
        return self._in.get().value

    def begin(self, sent: bytes, head: bytes) -> None:
        """The state of the output when nothing was sent but `head`, by the next `flush`."""
        self._out.set(State(sent))
        os.write(self._out_pipe.writing, head)

    # --- output ---

    async def send(self, data: bytes, state: bytes | None = None) -> None:
        """Send data, after which the output is at `state` (None: where it was)."""
        pipe = self._out_pipe
        if state is None:
            state = self._out.get().value
        if len(data) > pipe.capacity:
            raise ValueError(f"{len(data)} bytes are more than one step of a session")
        if pipe.held():
            await self.flush()
        self._out.set(State(state, MOVING, len(data)))
        os.write(pipe.writing, data)
        self._out.set(State(state))
        await self.flush()

    async def flush(self) -> None:
        """Send what the pipe has; ConnectionError if the client is gone."""
        pipe, to = self._out_pipe, self._socket.fileno()
        left = pipe.held()
        while left:
            try:
                left -= os.splice(pipe.reading, to, left, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    # --- input ---

    async def peek(self) -> bytes:
        """See Wire."""
        if self._early:
            return self._early
        while True:
            try:
                return self._socket.recv(PEEK, socket.MSG_PEEK)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            except ConnectionResetError:
                return b""

    def consume(self, count: int, state: bytes | None = None) -> None:
        """Take `count` of the bytes that were peeked, after which the input is at `state`."""
        if state is None:
            state = self._in.get().value
        if self._early:
            self._early = self._early[count:]
            self._in.set(State(state))
            return
        moving = State(state, MOVING, count)
        self._in.set(moving)
        self._take(moving)

    def skip_early(self, count: int) -> None:
        """The first `count` bytes of what came with the request were consumed before."""
        self._early = self._early[count:]

    def _take(self, state: State) -> None:
        """Take out of the socket what this state says, less what is in the pipe already."""
        pipe, source = self._in_pipe, self._socket.fileno()
        left = state.count
        if state.phase == EMPTYING:
            self._make_room(state.value, left)
        else:
            left -= pipe.held()
        while left > 0:
            try:
                moved = os.splice(source, pipe.writing, left, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                if not pipe.held():
                    break  # The client has gone, and its bytes with it.
                self._make_room(state.value, left)
                continue
            if not moved:
                break
            left -= moved
        self._in.set(State(state.value))
        pipe.drop()

    def _make_room(self, value: bytes, left: int) -> None:
        # Each small write of a client takes a whole page of the pipe.
        self._in.set(State(value, EMPTYING, left))
        self._in_pipe.drop()
        self._in.set(State(value, MOVING, left))

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        descriptor = self._socket.fileno()
        add(descriptor, _settle, future)
        try:
            await future
        finally:
            remove(descriptor)

    # --- the end ---

    async def close(self) -> None:
        """See Wire; a session that a successor is to take up is left as it is."""
        if self._closed:
            return
        self._closed = True
        self._watch.remove(self._socket.fileno())
        if self._at_close():
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                for _ in range(_DRAIN_ROUNDS):
                    if not self._socket.recv(PEEK):
                        break
        self._socket.close()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
