"""The NATS protocol: whatever way the bytes are cut, the same messages come out."""

import asyncio
import random

import pytest

from mooring.kit.nats_protocol import (
    Connection,
    Disconnected,
    Msg,
    ProtocolError,
    encode_headers,
)

INFO = b'INFO {"max_payload": 8388608, "auth_required": true}\r\n'


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.closed = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 4222)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: object) -> None:
        self.written += data  # type: ignore[operator]
        self.writes += 1

    def writelines(self, list_of_data: object) -> None:
        self.written += b"".join(list_of_data)  # type: ignore[arg-type]
        self.writes += 1

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class FakeClient:
    """Remembers what was delivered."""

    def __init__(self) -> None:
        self.max_payload = 0
        self.delivered: list[tuple[int, str, str, bytes, bytes]] = []
        self.lost = 0

    def deliver(self, sid: int, message: Msg) -> None:
        self.delivered.append((sid, message.subject, message.reply, message.header, message.data))

    def connection_lost(self, connection: Connection) -> None:
        self.lost += 1


@pytest.fixture
async def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
async def connection(client: FakeClient) -> Connection:
    made = Connection(client)
    made.connection_made(FakeTransport())
    return made


def transport(connection: Connection) -> FakeTransport:
    found = connection._transport
    assert isinstance(found, FakeTransport)
    return found


HEADER = b"NATS/1.0 503\r\n\r\n"
STREAM = (
    INFO
    + b"MSG a.b 1 5\r\nhello\r\n"
    + b"PING\r\n"
    + b"MSG a.c 2 reply.x 0\r\n\r\n"
    + b"+OK\r\n"
    + b"HMSG a.d 3 _INBOX.1 16 18\r\n" + HEADER + b"ab\r\n"
    + b"HMSG a.e 4 16 16\r\n" + HEADER + b"\r\n"
    + b"MSG big 5 300000\r\n" + b"x" * 300_000 + b"\r\n"
    + b"MSG odd 6 4\r\n\r\n\r\n\r\n"
)  # fmt: skip
MESSAGES = [
    (1, "a.b", "", b"", b"hello"),
    (2, "a.c", "reply.x", b"", b""),
    (3, "a.d", "_INBOX.1", HEADER, b"ab"),
    (4, "a.e", "", HEADER, b""),
    (5, "big", "", b"", b"x" * 300_000),
    (6, "odd", "", b"", b"\r\n\r\n"),
]


async def test_every_kind_of_message_is_delivered(
    connection: Connection, client: FakeClient
) -> None:
    connection.data_received(STREAM)
    assert client.delivered == MESSAGES
    await asyncio.sleep(0)
    assert transport(connection).written == b"PONG\r\n"


@pytest.mark.parametrize("seed", range(20))
async def test_however_the_bytes_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    client = FakeClient()
    connection = Connection(client)
    connection.connection_made(FakeTransport())
    position = 0
    while position < len(STREAM):
        size = chance.choice((1, 2, 3, 17, 1000, 100_000))
        connection.data_received(STREAM[position : position + size])
        position += size
    assert client.delivered == MESSAGES


async def test_the_handshake_sends_the_credentials(
    connection: Connection, client: FakeClient
) -> None:
    shaking = asyncio.ensure_future(connection.handshake("test", {"user": "u", "pass": "p"}))
    connection.data_received(INFO)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    connection.data_received(b"PONG\r\n")
    await shaking
    assert b'"user": "u", "pass": "p"' in transport(connection).written
    assert client.max_payload == 8388608
    connection.connection_lost(None)


async def test_a_refused_handshake_says_why(connection: Connection) -> None:
    shaking = asyncio.ensure_future(connection.handshake("test", {}))
    connection.data_received(INFO)
    await asyncio.sleep(0)
    connection.data_received(b"-ERR 'Authorization Violation'\r\n")
    await asyncio.sleep(0)
    connection.connection_lost(None)
    with pytest.raises(ProtocolError, match="Authorization Violation"):
        await shaking


@pytest.mark.parametrize("data", [b"HTTP/1.1 400\r\n", b"x" * 70_000, b"MSG a\r\n"])
async def test_what_is_not_nats_ends_the_connection(connection: Connection, data: bytes) -> None:
    connection.data_received(data)
    assert transport(connection).closed


async def test_a_closed_socket_takes_nothing_and_says_so_at_once(
    connection: Connection, client: FakeClient
) -> None:
    transport(connection).closed = True
    with pytest.raises(Disconnected):
        connection.write([b"x"])
    assert client.lost == 1


def test_headers_are_read_back() -> None:
    message = Msg("s", "", encode_headers({"A": "1", "B-C": "x y"}), b"")
    assert message.headers() == {"A": "1", "B-C": "x y"}
    assert message.status == 0
    assert Msg("s", "", b"NATS/1.0 404 Not Found\r\n\r\n", b"").status == 404
    assert Msg("s", "", b"NATS/1.0 404 Not Found\r\n\r\n", b"").description == "Not Found"


async def test_what_is_sent_in_one_turn_of_the_loop_goes_out_in_one_piece(
    connection: Connection,
) -> None:
    connection.write([b"PUB a 1\r\n", b"1", b"\r\n"])
    connection.write([b"PUB b 1\r\n", b"2", b"\r\n"])
    assert transport(connection).written == b""

    await asyncio.sleep(0)

    assert transport(connection).written == b"PUB a 1\r\n1\r\nPUB b 1\r\n2\r\n"
    assert transport(connection).writes == 1


async def test_what_is_large_is_handed_to_the_socket_at_once_and_in_order(
    connection: Connection,
) -> None:
    connection.write([b"PUB a 1\r\n", b"1", b"\r\n"])
    connection.write([b"PUB b 131072\r\n", bytes(131072), b"\r\n"])
    connection.write([b"PING\r\n"])

    assert transport(connection).written.endswith(bytes(100) + b"\r\n")
    await asyncio.sleep(0)
    assert transport(connection).written.startswith(b"PUB a 1\r\n1\r\nPUB b 131072")
    assert transport(connection).written.endswith(b"\r\nPING\r\n")
    assert transport(connection).writes == 2


async def test_closing_sends_what_is_waiting(connection: Connection) -> None:
    connection.write([b"PUB a 1\r\n", b"1", b"\r\n"])
    connection.close()
    assert transport(connection).written == b"PUB a 1\r\n1\r\n"
