"""`attach/ws`: the streams of a container in the frames of a websocket."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest

from mooring.gateway.http.websocket import unmask
from mooring.kit.models.container import ContainerConfig

from .client import Client, Connection
from .fakes import FakeEngine

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The nonce of RFC 6455's example, with the answer that it gives."""
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
UPGRADE = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
QUERY = "stream=1&stdin=1&stdout=1&stderr=1"


class WebSocket:
    """A client that follows the letter of the RFC."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, opcode: int, payload: bytes, *, final: bool = True, masked: bool = True) -> None:
        size = len(payload)
        flag = 0x80 if masked else 0
        head = bytes([(0x80 if final else 0) | opcode])
        if size < 126:
            head += bytes([flag | size])
        elif size < 1 << 16:
            head += bytes([flag | 126]) + struct.pack("!H", size)
        else:
            head += bytes([flag | 127]) + struct.pack("!Q", size)
        if masked:
            mask = os.urandom(4)
            head += mask
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self._connection.writer.write(head + payload)

    async def receive(self) -> tuple[int, bytes]:
        """The next frame."""
        reader = self._connection.reader
        async with asyncio.timeout(10):
            first, size = await reader.readexactly(2)
            assert first & 0xF0 == 0x80, "the server sends whole messages"
            assert size < 0x80, "a server does not mask"
            if size == 126:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await reader.readexactly(8))
            return first & 0x0F, await reader.readexactly(size)

    async def output(self, size: int) -> bytes:
        """So much of what binary frames bring."""
        data = b""
        while len(data) < size:
            opcode, payload = await self.receive()
            assert opcode == BINARY
            data += payload
        return data

    async def closed(self) -> int:
        """The code of the close frame that has to be next, and nothing behind it."""
        opcode, payload = await self.receive()
        assert opcode == CLOSE
        assert await self._connection.reader.read() == b""
        return int.from_bytes(payload[:2], "big")


async def attached(client: Client, query: str = QUERY) -> WebSocket:
    connection = await client.connect()
    connection.send("GET", f"/containers/web/attach/ws?{query}", headers=UPGRADE)
    head = await connection.head()
    assert (head.status, head.headers["sec-websocket-accept"]) == (101, ACCEPT)
    return WebSocket(connection)


async def test_output_comes_in_frames_without_docker_heads_and_ends_with_a_close(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    socket = await attached(client)
    engine.prints(record.id, b"hello\n")
    engine.prints(record.id, b"oops\n", stream=2)
    assert await socket.output(11) == b"hello\noops\n"
    engine.prints(record.id, b"x" * 300_000)
    assert await socket.output(300_000) == b"x" * 300_000
    await engine.exit(record.id)
    assert await socket.closed() == 1000
    assert engine.notes == [(record.id, "attach")]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
async def test_input_of_any_size_reaches_the_container(
    client: Client, engine: FakeEngine, size: int
) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True))
    engine.echo = True
    socket = await attached(client)
    data = os.urandom(size)
    socket.send(BINARY, data)
    socket.send(TEXT, b"end")
    assert await socket.output(size + 3) == data + b"end"
    assert engine.stdin[record.id] == data + b"end"


async def test_a_ping_is_answered_even_between_the_parts_of_a_message(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True))
    socket = await attached(client)
    socket.send(TEXT, b"one ", final=False)
    socket.send(PING, b"are you there?")
    assert await socket.receive() == (PONG, b"are you there?")
    socket.send(CONTINUATION, b"two")
    socket.send(CLOSE, b"")
    assert await socket.closed() == 1000
    assert engine.stdin[record.id] == b"one two"


async def test_a_client_that_closes_is_answered_and_the_container_goes_on(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True))
    socket = await attached(client)
    socket.send(BINARY, b"last words")
    socket.send(CLOSE, struct.pack("!H", 1001))
    assert await socket.closed() == 1001
    assert engine.stdin[record.id] == b"last words"
    assert (await client.get("/containers/web/json")).json["State"]["Running"]


async def test_what_is_no_frame_ends_the_conversation(client: Client, engine: FakeEngine) -> None:
    await engine.running("web", config=ContainerConfig(open_stdin=True))
    socket = await attached(client)
    socket.send(BINARY, b"not masked", masked=False)
    assert await socket.closed() == 1002


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Upgrade", "tcp"),
        ("Connection", "close"),
        ("Sec-WebSocket-Version", "8"),
        ("Sec-WebSocket-Key", "short"),
    ],
)
async def test_what_asks_for_no_websocket_is_refused(
    client: Client, engine: FakeEngine, header: str, value: str
) -> None:
    await engine.running("web")
    async with await client.connect() as connection:
        path = f"/containers/web/attach/ws?{QUERY}"
        answer = await connection.request("GET", path, headers=UPGRADE | {header: value})
    assert answer.status == 400


async def test_nobody_is_attached_to_nothing(client: Client, engine: FakeEngine) -> None:
    async with await client.connect() as connection:
        answer = await connection.request("GET", "/containers/no/attach/ws", headers=UPGRADE)
    assert (answer.status, answer.message) == (404, "No such container: no")


@pytest.mark.parametrize("cut", range(9))
def test_a_mask_goes_on_where_it_was(cut: int) -> None:
    data, mask = bytes(range(17)), b"\x01\x02\x03\x04"
    whole = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    assert unmask(data[:cut], mask, 0) + unmask(data[cut:], mask, cut) == whole
