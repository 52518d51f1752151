"""attach, exec, logs, wait and events over the wire."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time

import pytest

from mooring.gateway.output import Formatter
from mooring.gateway.routes.execs import ExecRoutes
from mooring.gateway.sessions.plans import AttachPlan
from mooring.kit.errors import Conflict
from mooring.kit.models.container import ContainerConfig, State
from mooring.kit.models.exec import StartExec
from mooring.kit.models.host import OpenStream

from .client import Answer, Client, Connection
from .fakes import SECOND, FakeEngine
from .test_sessions import Kept

UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}
STREAMS = "stream=1&stdout=1&stderr=1"


def mux(data: bytes) -> list[tuple[int, bytes]]:
    """The frames of a multiplexed stream, neighbours of one stream joined."""
    found: list[tuple[int, bytes]] = []
    while data:
        stream, size = struct.unpack_from(">BxxxI", data)
        payload, data = data[8 : 8 + size], data[8 + size :]
        if found and found[-1][0] == stream:
            payload = found.pop()[1] + payload
        found.append((stream, payload))
    return found


async def attach(
    client: Client, name: str, query: str = STREAMS, headers: dict[str, str] | None = None
) -> tuple[Connection, Answer]:
    connection = await client.connect()
    connection.send("POST", f"/containers/{name}/attach?{query}", headers=headers or UPGRADE)
    return connection, await connection.head()


async def test_run_attached_shows_the_output_and_the_exit_code(
    client: Client, engine: FakeEngine
) -> None:
    created = await client.post("/containers/create?name=web", {"Image": "bb", "Cmd": ["true"]})
    assert created.status == 201
    stream, head = await attach(client, "web")
    assert (head.status, head.headers["upgrade"]) == (101, "tcp")
    assert head.headers["content-type"] == "application/vnd.docker.multiplexed-stream"
    waiting = await client.connect()
    waiting.send("POST", "/containers/web/wait?condition=next-exit")
    assert (await waiting.head()).status == 200
    assert (await client.post("/containers/web/start", b"{}")).status == 204
    container = created.json["Id"]
    engine.prints(container, b"hello\n")
    engine.prints(container, b"oops\n", stream=2)
    await engine.exit(container, 3)
    assert mux(await stream.reader.read()) == [(1, b"hello\n"), (2, b"oops\n")]
    assert json.loads(await waiting.chunk()) == {"StatusCode": 3}
    assert engine.notes == [(container, "attach")]


async def test_attach_to_a_running_container_shows_only_what_comes(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    engine.prints(record.id, b"old\n")
    stream, head = await attach(client, "web", headers={"Content-Length": "0"})
    assert (head.status, head.headers.get("upgrade")) == (200, None)
    engine.prints(record.id, b"new\n")
    await engine.exit(record.id)
    assert mux(await stream.reader.read()) == [(1, b"new\n")]


async def test_attach_with_logs_replays_what_was_printed(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    engine.prints(record.id, b"old\n")
    stream, _ = await attach(client, "web", f"{STREAMS}&logs=1")
    engine.prints(record.id, b"new\n")
    await engine.exit(record.id)
    assert mux(await stream.reader.read()) == [(1, b"old\nnew\n")]


async def test_input_reaches_the_container_and_its_end_leaves_the_output_open(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True))
    engine.echo = True
    stream, _ = await attach(client, "web", f"{STREAMS}&stdin=1")
    stream.writer.write(b"one\n")
    assert mux(await stream.reader.readexactly(12)) == [(1, b"one\n")]
    stream.writer.write(b"two\n")
    stream.writer.write_eof()
    ended = engine.stdin_ended.setdefault(record.id, asyncio.Event())
    await ended.wait()
    assert engine.stdin[record.id] == b"one\ntwo\n"
    engine.prints(record.id, b"more\n")
    await engine.exit(record.id)
    assert mux(await stream.reader.read()) == [(1, b"two\nmore\n")]


async def test_input_sent_with_the_request_is_not_lost(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True))
    connection = await client.connect()
    path = f"/containers/web/attach?{STREAMS}&stdin=1"
    head = f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"
    connection.writer.write(head.encode() + b"early")
    connection.writer.write_eof()
    await connection.head()
    await engine.stdin_ended.setdefault(record.id, asyncio.Event()).wait()
    assert engine.stdin[record.id] == b"early"
    connection.writer.close()


async def test_detach_keys_end_the_stream_of_a_terminal(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True, tty=True))
    stream, head = await attach(client, "web", f"{STREAMS}&stdin=1")
    assert head.headers["content-type"] == "application/vnd.docker.raw-stream"
    engine.prints(record.id, b"prompt")
    assert await stream.reader.readexactly(6) == b"prompt"
    stream.writer.write(b"ls\x10\x11")
    assert await stream.reader.read() == b""
    assert engine.stdin[record.id] == b"ls"
    async with engine.noted:
        await engine.noted.wait_for(lambda: engine.notes[1:] == [(record.id, "detach")])
    assert (await client.get("/containers/web/json")).json["State"]["Running"]


async def test_attach_ends_when_the_start_is_refused(client: Client, engine: FakeEngine) -> None:
    await client.post("/containers/create?name=web", {"Image": "bb", "Cmd": ["nope"]})
    stream, _ = await attach(client, "web")
    assert (await client.post("/containers/web/start")).status == 400
    assert await stream.reader.read() == b""


async def test_attach_to_a_paused_container_is_refused(client: Client, engine: FakeEngine) -> None:
    await engine.running("web")
    await client.post("/containers/web/pause")
    _, head = await attach(client, "web")
    assert head.status == 409


async def test_a_client_that_leaves_takes_nothing_with_it(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    stream, _ = await attach(client, "web")
    stream.writer.close()
    engine.prints(record.id, b"x" * 1000)
    second, _ = await attach(client, "web")
    engine.prints(record.id, b"still here")
    await engine.exit(record.id)
    assert mux(await second.reader.read()) == [(1, b"still here")]


async def test_exec_shows_its_output_and_then_its_exit_code(
    client: Client, engine: FakeEngine
) -> None:
    await engine.running("web")
    body = {"Cmd": ["echo", "hi"], "AttachStdout": True, "AttachStderr": True}
    made = await client.post("/containers/web/exec", body)
    assert made.status == 201
    exec_id = made.json["Id"]
    before = (await client.get(f"/exec/{exec_id}/json")).json
    assert (before["Running"], before["ExitCode"]) == (False, None)
    connection = await client.connect()
    headers = {"Content-Type": "application/json", **UPGRADE}
    connection.send("POST", f"/exec/{exec_id}/start", b'{"Tty":false}', headers)
    assert (await connection.head()).status == 101
    assert mux(await connection.reader.read()) == [(1, b"echo hi\n")]
    again = await client.request("POST", f"/exec/{exec_id}/start", {})
    assert again.status == 409
    assert (await client.get(f"/exec/{exec_id}/json")).json["ExitCode"] == 3


async def test_exec_output_is_whole_when_the_stream_ends(
    client: Client, engine: FakeEngine
) -> None:
    await engine.running("web")
    made = await client.post("/containers/web/exec", {"Cmd": ["echo", "hi"], "AttachStdout": True})
    connection = await client.connect()
    body = b'{"Detach":false,"Tty":false}'
    connection.send("POST", f"/exec/{made.json['Id']}/start", body,
                    {"Content-Type": "application/json"})  # fmt: skip
    assert (await connection.head()).status == 200
    assert mux(await connection.reader.read()) == [(1, b"echo hi\n")]
    # Whoever asks now is told: the exit code was known before the stream's end.
    assert (await client.get(f"/exec/{made.json['Id']}/json")).json["ExitCode"] == 3


async def test_exec_with_input_ends_with_it(client: Client, engine: FakeEngine) -> None:
    await engine.running("web")
    engine.echo = True
    body = {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True}
    made = await client.post("/containers/web/exec", body)
    connection = await client.connect()
    headers = {"Content-Type": "application/json", **UPGRADE}
    connection.send("POST", f"/exec/{made.json['Id']}/start", b"{}", headers)
    await connection.head()
    connection.writer.write(b"over and out")
    connection.writer.write_eof()
    assert mux(await connection.reader.read()) == [(1, b"over and out")]


async def test_an_exec_whose_gateway_died_before_it_had_asked_is_started_by_the_next(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    made = await client.post("/containers/web/exec", {"Cmd": ["echo", "hi"], "AttachStdout": True})
    ident = made.json["Id"]
    plan = AttachPlan(
        kind="exec",
        node=record.node,
        opened=OpenStream(id=record.id, exec_id=ident, offset=0, follow=True),
        container=record.id,
        exec_id=ident,
        start=StartExec(request_id="first-1", exec_id=ident),
    )
    kept = Kept()
    assert engine.gateway is not None
    # Its client has the head; the record says that nothing was started.
    wire = kept.wire()
    first = Formatter(raw=False, stdout=True, stderr=True)
    await wire.send(b"", first.state(0))
    await ExecRoutes(engine.gateway).resume(plan, wire)
    kept.server.shutdown(socket.SHUT_WR)
    assert mux(kept.client.recv(1 << 16)) == [(1, b"echo hi\n")]
    kept.close()
    assert (await client.get(f"/exec/{ident}/json")).json["ExitCode"] == 3


async def test_an_exec_that_is_refused_says_why_in_the_stream(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    engine.exec_refusal = Conflict("Error: Exec command x is already running")
    made = await client.post("/containers/web/exec", {"Cmd": ["x"], "AttachStdout": True})
    connection = await client.connect()
    connection.send("POST", f"/exec/{made.json['Id']}/start", b"{}",
                    {"Content-Type": "application/json"})  # fmt: skip
    # As with dockerd, which sends the head before it starts anything.
    assert (await connection.head()).status == 200
    assert mux(await connection.reader.read()) == [
        (1, b"Error: Exec command x is already running\r\n")
    ]
    await engine.exit(record.id)
    refused = await client.post(f"/exec/{made.json['Id']}/start", {})
    assert (refused.status, refused.message) == (409, f"container {record.id} is not running")


async def test_an_exec_that_cannot_be_executed_says_why_in_the_stream(
    client: Client, engine: FakeEngine
) -> None:
    await engine.running("web")
    engine.exec_error = "OCI runtime exec failed: permission denied"
    made = await client.post("/containers/web/exec", {"Cmd": ["x"], "AttachStdout": True})
    connection = await client.connect()
    connection.send("POST", f"/exec/{made.json['Id']}/start", b"{}",
                    {"Content-Type": "application/json"})  # fmt: skip
    await connection.head()
    assert mux(await connection.reader.read()) == [
        (1, b"OCI runtime exec failed: permission denied\r\n")
    ]


async def test_a_detached_exec_answers_at_once(client: Client, engine: FakeEngine) -> None:
    await engine.running("web")
    made = await client.post("/containers/web/exec", {"Cmd": ["sleep"]})
    started = await client.post(f"/exec/{made.json['Id']}/start", {"Detach": True})
    assert (started.status, started.body) == (200, b"")


async def test_logs_are_filtered_and_stamped(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web")
    for second in (10, 20, 30):
        engine.prints(record.id, f"at {second}\n".encode(), at=second * SECOND)
    engine.prints(record.id, b"error\n", stream=2, at=20 * SECOND + 5)
    await engine.exit(record.id)
    base = "/containers/web/logs?stdout=1"
    assert mux((await client.get(base)).body) == [(1, b"at 10\nat 20\nat 30\n")]
    both = mux((await client.get(f"{base}&stderr=1&since=15&until=25.5")).body)
    assert both == [(1, b"at 20\n"), (2, b"error\n")]
    stamped = mux((await client.get(f"{base}&timestamps=1&since=30")).body)
    assert stamped == [(1, b"1970-01-01T00:00:30.000000000Z at 30\n")]
    detailed = mux((await client.get(f"{base}&details=1&since=30")).body)
    assert detailed == [(1, b" at 30\n")]
    assert (await client.get("/containers/web/logs")).status == 400


async def test_followed_logs_end_with_the_container(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web", config=ContainerConfig(tty=True))
    engine.prints(record.id, b"one\r\n")
    connection = await client.connect()
    connection.send("GET", "/containers/web/logs?stdout=1&follow=1")
    assert (await connection.head()).status == 200
    assert await connection.chunk() == b"one\r\n"
    engine.prints(record.id, b"two\r\n")
    assert await connection.chunk() == b"two\r\n"
    await engine.exit(record.id)
    assert await connection.chunk() == b""


async def test_a_flood_is_passed_on_whole(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web", config=ContainerConfig(tty=True))
    line = bytes(range(256)) * 1024
    for _ in range(40):
        engine.prints(record.id, line)
    await engine.exit(record.id)
    answer = await client.get("/containers/web/logs?stdout=1")
    assert answer.body == line * 40


async def test_wait_for_what_is_over_answers_at_once(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web")
    await engine.exit(record.id, 7)
    assert (await client.post("/containers/web/wait")).json == {"StatusCode": 7}
    old = await client.post("/v1.29/containers/web/wait")
    assert (old.json, "transfer-encoding" in old.headers) == ({"StatusCode": 7}, False)
    assert (await client.post("/containers/web/wait?condition=never")).status == 400


async def test_wait_for_the_removal_sees_the_tombstone(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web")
    waiting = await client.connect()
    waiting.send("POST", "/containers/web/wait?condition=removed")
    assert (await waiting.head()).status == 200
    await engine.exit(record.id, 5)
    await client.request("DELETE", "/containers/web")
    assert json.loads(await waiting.chunk()) == {"StatusCode": 5}
    assert (await client.get("/containers/web/json")).status == 404


@pytest.mark.parametrize("condition", ["not-running", "next-exit", "removed"])
async def test_wait_for_what_is_removed_by_force_has_its_exit_code(
    client: Client, engine: FakeEngine, condition: str
) -> None:
    record = await engine.running("web")
    waiting = await client.connect()
    waiting.send("POST", f"/containers/web/wait?condition={condition}")
    assert (await waiting.head()).status == 200
    await engine.change(record.id, state=State.REMOVING)
    ended = {"pid": 0, "exit_code": 137, "finished_ns": time.time_ns()}
    await engine.change(record.id, **ended)
    await engine.change(record.id, state=State.REMOVED)
    assert json.loads(await waiting.chunk()) == {"StatusCode": 137}


async def test_events_of_the_past_and_those_that_come(client: Client, engine: FakeEngine) -> None:
    before = time.time_ns()
    await engine.emit("create", attributes={"name": "web", "image": "bb"})
    await engine.emit("start", attributes={"name": "web", "image": "bb", "app": "x"})
    await engine.emit("pull", actor="bb", type="image", attributes={"name": "bb"})
    since = f"{before // SECOND}.{before % SECOND:09d}"
    past = (await client.get(f"/events?since={since}&until={time.time():.6f}")).body
    shown = [json.loads(line) for line in past.splitlines()]
    assert [event["Action"] for event in shown] == ["create", "start", "pull"]
    assert (shown[0]["status"], shown[0]["from"], shown[0]["scope"]) == ("create", "bb", "local")
    filters = json.dumps({"type": ["container"], "label": ["app=x"]})
    path = f"/events?since={since}&filters={filters.replace(' ', '')}"
    connection = await client.connect()
    connection.send("GET", path)
    await connection.head()
    assert json.loads(await connection.chunk())["Action"] == "start"
    await engine.emit("die", attributes={"app": "x"})
    assert json.loads(await connection.chunk())["Action"] == "die"


async def test_events_without_a_past_end_at_once(client: Client, engine: FakeEngine) -> None:
    answer = await client.get("/events?since=1&until=2")
    assert (answer.status, answer.body) == (200, b"")
    assert (await client.get("/events?since=3&until=2")).status == 400
    assert (await client.get("/events?since=yesterday")).status == 400


async def test_live_events_end_at_until(client: Client, engine: FakeEngine) -> None:
    answer = await client.get(f"/events?until={time.time() + 0.2:.3f}")
    assert (answer.status, answer.body) == (200, b"")


async def test_the_state_of_a_container_that_stops_reaches_the_list(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    async with await client.connect() as connection:
        assert len((await connection.request("GET", "/containers/json")).json) == 1
        assert (await connection.request("POST", "/containers/web/stop?t=1")).status == 204
        assert (await connection.request("GET", "/containers/json")).json == []
    assert engine.asked[-1].timeout == 1
    shown = (await client.get(f"/containers/{record.id[:12]}/json")).json["State"]
    assert (shown["Status"], shown["ExitCode"]) == (State.EXITED, 143)


async def test_a_terminal_that_is_left_keeps_its_input(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True, tty=True))
    stream, _ = await attach(client, "web", f"{STREAMS}&stdin=1")
    stream.writer.write(b"ls")
    stream.writer.write_eof()
    engine.prints(record.id, b"out")
    assert await stream.reader.readexactly(3) == b"out"
    stream.writer.close()
    second, _ = await attach(client, "web", f"{STREAMS}&stdin=1")
    second.writer.write(b"\x10\x11")
    assert await second.reader.read() == b""
    assert record.id not in engine.stdin_ended


async def test_what_a_client_sent_before_it_left_is_written(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True))
    stream, _ = await attach(client, "web", f"{STREAMS}&stdin=1")
    stream.writer.write(b"x" * 100_000)
    await stream.writer.drain()
    stream.writer.close()
    await engine.stdin_ended.setdefault(record.id, asyncio.Event()).wait()
    assert engine.stdin[record.id] == b"x" * 100_000
