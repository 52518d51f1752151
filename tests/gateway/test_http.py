"""Heads and bodies as bytes, and connections that use them in every way HTTP/1.1 has."""

from __future__ import annotations

import asyncio
import json

import pytest

from mooring.gateway.http.body import ChunkedBody, LengthBody
from mooring.gateway.http.head import BadHead, parse
from mooring.kit.config import Settings

from .client import Client
from .fakes import FakeEngine


def test_a_head_is_taken_apart() -> None:
    head = parse(b"POST /a?b=c HTTP/1.1\r\nHost: d\r\nX-A: 1\r\nx-a:  2 \r\nContent-Length: 7")
    assert (head.method, head.target, head.length, head.chunked) == ("POST", "/a?b=c", 7, False)
    assert head.headers["x-a"] == "1, 2"
    assert head.keep_alive


@pytest.mark.parametrize(
    ("raw", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: d\r\nConnection: close", False),
        (b"GET / HTTP/1.1\r\nHost: d\r\nConnection: Upgrade, Close", False),
        (b"GET / HTTP/1.0", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive", True),
        (b"GET http://docker/x HTTP/1.1\r\nHost: d", True),
    ],
)
def test_connections_are_kept_as_the_head_says(raw: bytes, keep_alive: bool) -> None:
    assert parse(raw).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /", 400),
        (b"GET  / HTTP/1.1\r\nHost: d", 400),
        (b"GET / HTTP/2.0\r\nHost: d", 505),
        (b"G\x00T / HTTP/1.1\r\nHost: d", 400),
        (b"GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nHost: d\r\nHost: e", 400),
        (b"GET / HTTP/1.1\r\nHost: d\r\nA : b", 400),
        (b"GET / HTTP/1.1\r\nHost: d\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nHost: d\r\nA: b\x00", 400),
        (b"GET / HTTP/1.1\r\nHost: d\r\nA: b\nC: d", 400),
        (b"POST / HTTP/1.1\r\nHost: d\r\nContent-Length: -1", 400),
        (b"POST / HTTP/1.1\r\nHost: d\r\nContent-Length: 1, 1", 400),
        (b"POST / HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"POST / HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
        (b"POST / HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: gzip", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(raw: bytes, status: int) -> None:
    with pytest.raises(BadHead) as caught:
        parse(raw)
    assert caught.value.status == status


@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_a_chunked_body_is_put_together(step: int) -> None:
    data = b"4\r\nWiki\r\n5;ext=1\r\npedia\r\n0\r\nTrailer: x\r\n\r\nGET"
    body = ChunkedBody()
    found, rest = b"", b""
    for at in range(0, len(data), step):
        if body.complete:
            rest += data[at : at + step]
            continue
        pieces, rest = body.feed(data[at : at + step])
        found += b"".join(pieces)
    assert (found, rest, body.complete) == (b"Wikipedia", b"GET", True)


@pytest.mark.parametrize("data", [b"x\r\n", b"-1\r\n", b"\r\n", b"2\r\nabc\r\n", b"f" * 5000])
def test_broken_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(BadHead):
        ChunkedBody().feed(data)


def test_a_body_of_known_length_ends_where_it_should() -> None:
    body = LengthBody(5)
    assert body.feed(b"abc") == ([b"abc"], b"")
    assert body.feed(b"deGET") == ([b"de"], b"GET")
    assert body.complete


async def test_requests_on_one_connection_are_answered_in_order(client: Client) -> None:
    async with await client.connect() as connection:
        for path in ("/_ping", "/v1.30/version", "/nowhere", "/containers/x/json", "/_ping"):
            connection.send("GET", path)
        statuses = [(await connection.answer()).status for _ in range(5)]
    assert statuses == [200, 200, 404, 404, 200]


async def test_ping_has_the_headers_that_clients_negotiate_by(client: Client) -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        answer = await client.request(method, "/_ping")
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["api-version"] == "1.50"
        assert answer.headers["ostype"] == "linux"
        assert answer.headers["docker-experimental"] == "false"
        assert answer.headers["swarm"] == "inactive"
        assert answer.headers["server"].startswith("Docker/")


async def test_a_body_in_chunks_is_a_body(client: Client, engine: FakeEngine) -> None:
    body = json.dumps({"Image": "bb"}).encode()
    async with await client.connect() as connection:
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        connection.send("POST", "/containers/create?name=web", headers=headers)
        for at in range(0, len(body), 3):
            piece = body[at : at + 3]
            connection.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await connection.writer.drain()
        connection.writer.write(b"0\r\n\r\n")
        assert (await connection.answer()).status == 201
        assert (await connection.request("GET", "/_ping")).status == 200


async def test_a_client_that_waits_for_continue_is_told(client: Client, engine: FakeEngine) -> None:
    body = json.dumps({"Image": "bb"}).encode()
    async with await client.connect() as connection:
        headers = {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            "Expect": "100-continue",
        }
        connection.send("POST", "/containers/create?name=web", headers=headers)
        assert (await connection.head()).status == 100
        connection.writer.write(body)
        assert (await connection.answer()).status == 201


async def test_a_body_over_the_limit_is_refused_and_the_connection_closed(
    client: Client, settings: Settings
) -> None:
    async with await client.connect() as connection:
        headers = {
            "Content-Length": str(settings.max_json_body + 1),
            "Content-Type": "application/json",
        }
        connection.send("POST", "/containers/create", headers=headers)
        connection.writer.write(b"x" * 100_000)
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert "too large" in answer.message


async def test_what_is_not_http_is_answered_once(client: Client) -> None:
    async with await client.connect() as connection:
        connection.writer.write(b"\x16\x03\x01hello\r\n\r\n")
        answer = await connection.answer()
        assert (answer.status, answer.message) == (400, "malformed request line")
        assert await connection.reader.read() == b""


async def test_an_endless_head_is_refused(client: Client) -> None:
    async with await client.connect() as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000)
        assert (await connection.answer()).status == 431


async def test_old_http_gets_an_answer_without_chunks(client: Client) -> None:
    async with await client.connect() as connection:
        connection.writer.write(b"GET /events?since=1&until=2 HTTP/1.0\r\n\r\n")
        raw = await connection.reader.read()
    assert raw.startswith(b"HTTP/1.1 200")
    assert b"chunked" not in raw


async def test_options_are_answered_everywhere(client: Client) -> None:
    answer = await client.request("OPTIONS", "/anything/at/all")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/_ping", "/version", "/containers/json", "/images/json", "/containers/x/json", "/no"]
)
@pytest.mark.parametrize(
    "head", ["GET {} HTTP/1.1\r\nHost: d\r\nConnection: close", "GET {} HTTP/1.0"]
)
async def test_a_connection_that_is_not_to_be_kept_ends_with_the_answer(
    client: Client, path: str, head: str
) -> None:
    async with await client.connect() as connection:
        connection.writer.write(f"{head.format(path)}\r\n\r\n".encode())
        answer = await connection.answer()
        assert answer.headers["connection"] == "close"
        assert await asyncio.wait_for(connection.reader.read(), 10) == b""
