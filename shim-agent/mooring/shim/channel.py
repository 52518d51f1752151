"""The conversation with one shim: JSON packets over a SOCK_SEQPACKET socket."""

from __future__ import annotations

import array
import asyncio
import json
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from mooring.kit.errors import KINDS, EngineError, Unavailable

from .vestibule import Ancillary

logger = logging.getLogger(__name__)

PACKET_BYTES = 256 << 10
"""More than the largest packet of either side: 128 KiB of raw bytes behind one JSON object."""

_ANCILLARY_BYTES = socket.CMSG_SPACE(16 * 4)
_encode = json.JSONEncoder(separators=(",", ":")).encode
# One loop, one thread, and a packet is parsed before the next is read: one buffer serves all.
_buffer = bytearray(PACKET_BYTES)

EventHandler = Callable[["Channel", dict[str, Any]], None]


class ShimRefused(EngineError):
    """A shim's refusal, with the exit code that a program that could not be executed gets."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Channel:
    """One connected socket: requests with answers, and the shim's events to a callback.

    `closed` is called once, when the shim or `close` ended the conversation; requests that wait
    then raise Unavailable.
    """

    def __init__(
        self,
        sock: socket.socket,
        event: EventHandler,
        closed: Callable[[Channel], None],
        first: Callable[[memoryview, Ancillary], None] | None = None,
    ) -> None:
        """first: is given the first packet with descriptors, before all that is done with it."""
        sock.setblocking(False)
        self.descriptors: list[int] = []
        """What came with the last packet by SCM_RIGHTS; `take_descriptors` takes them over."""
        self.pressed = False
        """The shim wants to know who reads its log; it may ask before its helper has said hello."""
        self._sock = sock
        self._event = event
        self._closed = closed
        self._first = first
        self._loop = asyncio.get_running_loop()
        self._answers: dict[object, asyncio.Future[dict[str, Any]]] = {}
        self._serial = 0
        self.busy = 0
        """Requests that wait for an answer, but for stdin: that may wait for ever, and whoever
        sends it sends it again."""
        self._unsent: deque[bytes] = deque()
        self._open = True

    def begin(self) -> None:
        """Listen from now on; what has been said by now is handled at once."""
        self.read()
        if self._open:
            self._loop.add_reader(self._sock.fileno(), self.read)

    @property
    def open(self) -> bool:
        """Whether requests can still be sent."""
        return self._open

    async def hello(self, container: str) -> dict[str, Any]:
        """Ask the shim who it is; its answer's "id" is the container's, as it is in shim.json."""
        return await self._ask(container, {"op": "hello", "id": container}, b"")

    async def request(self, op: str, data: bytes = b"", **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; the shim's error is raised by its kind."""
        self._serial += 1
        answer = await self._ask(self._serial, {"op": op, "id": self._serial, **fields}, data)
        for descriptor in answer.pop("descriptors", ()):
            os.close(descriptor)
        return answer

    async def request_with(self, op: str, given: int = -1, /, **fields: Any) -> dict[str, Any]:
        """Like `request`; what came with the answer is its "descriptors", the caller's to close.

        given: a descriptor that the shim gets with it, unless many requests wait to be sent.
        """
        self._serial += 1
        return await self._ask(self._serial, {"op": op, "id": self._serial, **fields}, b"", given)

    async def _ask(
        self, id_: object, message: dict[str, Any], data: bytes, given: int = -1
    ) -> dict[str, Any]:
        if not self._open:
            raise Unavailable("the shim's connection is closed")
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers[id_] = answer
        counted = message["op"] != "stdin"
        self.busy += counted
        try:
            self._send(_packet(message, data), given)
            reply = await answer
        finally:
            self._answers.pop(id_, None)
            self.busy -= counted
        if error := reply.get("error"):
            raise _refusal(error)
        return reply

    def tell(self, op: str, **fields: Any) -> None:
        """Send a request whose answer, if any, is an event; nothing if the shim is gone."""
        if self._open:
            self._send(_packet({"op": op, **fields}, b""))

    def close(self) -> None:
        """End the conversation."""
        if not self._open:
            return
        self._open = False
        number = self._sock.fileno()
        self._loop.remove_reader(number)
        if self._unsent:
            self._loop.remove_writer(number)
            self._unsent.clear()
        self._sock.close()
        self.drop_descriptors()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable("the shim's connection broke"))
        self._closed(self)

    def take_descriptors(self) -> list[int]:
        """What came with the packet that is being handled; the caller's from here on."""
        taken, self.descriptors = self.descriptors, []
        return taken

    def drop_descriptors(self) -> None:
        """Close descriptors that nobody took over."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def _send(self, packet: bytes, given: int = -1) -> None:
        """given: a descriptor to go with it; only if it can be sent at once."""
        if not self._unsent:
            try:
                if given >= 0:
                    socket.send_fds(self._sock, [packet], [given])
                else:
                    self._sock.send(packet)
                return
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            except OSError:
                self._loop.call_soon(self.close)
                return
        self._unsent.append(packet)

    def _writable(self) -> None:
        try:
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._sock.fileno())

    def read(self) -> None:
        """Handle what has come."""
        # Several packets to a wake-up, but not so many that one shim starves the others.
        for _ in range(16):
            if not self._open:
                return
            try:
                size, ancillary, _, _ = self._sock.recvmsg_into(
                    [_buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                size, ancillary = 0, []
            if size == 0:
                self.close()
                return
            packet = memoryview(_buffer)[:size]
            if ancillary:
                if self._first is not None:
                    self._first(packet, ancillary)
                    self._first = None
                self._keep(ancillary)
            self._handle(bytes(packet))

    def _keep(self, ancillary: Ancillary) -> None:
        self.drop_descriptors()
        numbers = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
        self.descriptors = list(numbers)

    def _handle(self, packet: bytes) -> None:
        try:
            message = json.loads(packet.partition(b"\n")[0])
            if "event" in message:
                self._event(self, message)
            elif (answer := self._answers.get(message.get("id"))) and not answer.done():
                # With the answer: another packet's may come before whoever waits goes on.
                message["descriptors"] = self.take_descriptors()
                answer.set_result(message)
        except Exception:
            # A shim that outlived an upgrade may say what this agent does not know.
            logger.exception("packet of a shim not understood: %.200r", packet)


def _packet(message: dict[str, Any], data: bytes) -> bytes:
    head = _encode(message).encode()
    return head + b"\n" + data if data else head


def _refusal(error: dict[str, Any]) -> EngineError:
    message = str(error.get("message") or "the shim refused without a reason")
    if code := error.get("exit_code"):
        return ShimRefused(message, int(code))
    return KINDS.get(str(error.get("kind")), EngineError)(message)
