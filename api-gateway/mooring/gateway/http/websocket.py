"""RFC 6455, as far as a byte stream needs it: a wire whose bytes travel in frames."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import struct

from .head import Head
from .wire import PEEK, Wire

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FINAL, _MASKED = 0x80, 0x80
_NORMAL, _PROTOCOL_ERROR = 1000, 1002
_LONGEST_CONTROL = 125


class NotWebSocket(Exception):
    """The request does not ask for a websocket, or for another version of it."""


class _Malformed(Exception):
    """The client sends what is no frame."""


def handshake(head: Head) -> bytes:
    """The head of the answer that turns the connection into a websocket; NotWebSocket."""
    headers = head.headers
    connection = {word.strip() for word in headers.get("connection", "").lower().split(",")}
    key = headers.get("sec-websocket-key", "")
    if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in connection:
        raise NotWebSocket("not websocket protocol")
    if headers.get("sec-websocket-version") != "13":
        raise NotWebSocket("missing or bad WebSocket Version")
    try:
        nonce = base64.b64decode(key, validate=True)
    except ValueError:
        nonce = b""
    if len(nonce) != 16:
        raise NotWebSocket("missing or bad Sec-WebSocket-Key")
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole frame of a server."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", _FINAL | opcode, size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", _FINAL | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", _FINAL | opcode, 127, size)
    return head + payload


class WebSocketWire:
    """A wire through a websocket: what is sent goes in frames, what frames bring can be peeked.

    Unlike on a raw wire, input that is peeked has left the socket: frames have to be taken apart
    to see a ping or the close. No more than PEEK bytes wait here; then the client has to.
    """

    limit: int | None = None

    def __init__(self, wire: Wire, *, text: bool = False) -> None:
        self._wire = wire
        self._opcode = _TEXT if text else _BINARY
        self._input = bytearray()
        self._ended = False
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._sending = asyncio.Lock()
        self._closed = False
        self._raw = bytearray()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wire.gone.add_done_callback(lambda _: self._set_gone())
        self._reader = asyncio.create_task(self._read(), name="websocket")

    async def send(self, data: bytes, state: bytes | None = None) -> None:
        """See Wire."""
        await self._send(self._opcode, data)

    async def peek(self) -> bytes:
        """See Wire."""
        while not self._input and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return bytes(self._input[:PEEK])

    def consume(self, count: int, state: bytes | None = None) -> None:
        """See Wire."""
        del self._input[:count]
        self._taken.set()

    async def close(self) -> None:
        """See Wire."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._send_close(_NORMAL)
        await self._wire.close()

    # --- input ---

    async def _read(self) -> None:
        code = 0
        try:
            while await self._frame():
                pass
        except _Malformed:
            code = _PROTOCOL_ERROR
        except (OSError, EOFError):
            pass
        finally:
            self._ended = True
            self._changed.set()
        if code:
            with contextlib.suppress(OSError):
                await self._send_close(code)
        self._set_gone()

    async def _frame(self) -> bool:
        """Take in one frame; False after the last."""
        first, second = await self._exactly(2)
        opcode, size = first & 0x0F, second & 0x7F
        control = opcode >= _CLOSE
        if first & 0x70 or not second & _MASKED or opcode not in _OPCODES:
            raise _Malformed
        if control and (size > _LONGEST_CONTROL or not first & _FINAL):
            raise _Malformed
        if size == 126:
            (size,) = struct.unpack("!H", await self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._exactly(8))
        mask = await self._exactly(4)
        if not control:
            await self._data(size, mask)
            return True
        payload = unmask(await self._exactly(size), mask, 0)
        if opcode == _CLOSE:
            # Answered with the client's own code.
            await self._send_close(int.from_bytes(payload[:2], "big") or _NORMAL)
            return False
        if opcode == _PING:
            await self._send(_PONG, payload)
        return True

    async def _data(self, size: int, mask: bytes) -> None:
        done = 0
        while done < size:
            while len(self._input) >= PEEK:
                self._taken.clear()
                await self._taken.wait()
            if not self._raw:
                await self._more()
            piece = bytes(self._raw[: min(size - done, PEEK)])
            del self._raw[: len(piece)]
            self._input += unmask(piece, mask, done)
            done += len(piece)
            self._changed.set()

    async def _exactly(self, count: int) -> bytes:
        while len(self._raw) < count:
            await self._more()
        taken = bytes(self._raw[:count])
        del self._raw[:count]
        return taken

    async def _more(self) -> None:
        data = await self._wire.peek()
        if not data:
            raise EOFError
        self._wire.consume(len(data))
        self._raw += data

    # --- output ---

    async def _send(self, opcode: int, payload: bytes) -> None:
        async with self._sending:
            if self._closed:
                raise ConnectionResetError("the websocket is closed")
            await self._wire.send(frame(opcode, payload))

    async def _send_close(self, code: int) -> None:
        async with self._sending:
            if not self._closed:
                self._closed = True
                await self._wire.send(frame(_CLOSE, struct.pack("!H", code)))

    def _set_gone(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


_OPCODES = frozenset({_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG})


def unmask(data: bytes, mask: bytes, offset: int) -> bytes:
    """A client's bytes without their mask; `offset`: of the first of them in their frame."""
    size = len(data)
    turn = offset % 4
    key = (mask[turn:] + mask[:turn]) * (size // 4 + 1)
    # As one number: a loop over the bytes would take a hundred times as long.
    mixed = int.from_bytes(data, "big") ^ int.from_bytes(key[:size], "big")
    return mixed.to_bytes(size, "big")
