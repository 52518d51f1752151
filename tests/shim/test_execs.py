"""Execs of a shim: their streams, their ends, and what is left of them."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from mooring.shim.logread import LogReader

from .harness import Container, Run, eventually, output


def command(script: str, **fields: Any) -> dict[str, Any]:
    return {"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/usr/bin:/bin"], **fields}


def log_of(container: Container, name: str) -> LogReader:
    return LogReader(str(container.directory / "execs" / name / "log"))


def test_output_input_and_exit_code(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    process = command("cat; echo err >&2; exit 4")
    pid = client.ask("exec", exec="e1", process=process, tty=False, stdin=True, output=True)
    assert client.ask("exec", exec="e1", process=process, tty=False, stdin=True) | {
        "id": 0
    } == pid | {"id": 0}
    answer = client.ask("stdin", b"in", session="s", offset=0, eof=True, exec="e1")
    assert (answer["offset"], answer["closed"]) == (2, True)
    event = client.event("exec_exit")
    assert event == {"event": "exec_exit", "exec": "e1", "exit_code": 4, "pid": pid["pid"]}
    reader = log_of(container, "e1")
    assert (output(reader, 1), output(reader, 2)) == (b"in", b"err\n")
    record = json.loads((container.directory / "execs/e1/exit.json").read_text())
    assert (record["exit_code"], record["exec"]) == (4, "e1")
    assert client.ask("hello")["execs"][0]["exit_code"] == 4
    assert client.ask("exec_forget", exec="e1")["ok"] is True
    assert client.ask("exec_forget", exec="e1")["ok"] is True
    assert not (container.directory / "execs/e1").exists()
    assert client.ask("hello")["execs"] == []


def test_one_that_is_not_there_says_so_with_its_code(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    error = client.ask("exec", exec="e", process={"args": ["/nope"]}, tty=False)["error"]
    assert (error["exit_code"], error["kind"]) == (127, "invalid_parameter")
    assert os.listdir(container.directory / "execs") == []


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_its_id_is_one_name(run: Run, name: str) -> None:
    client = run("sleep", "100").client()
    answer = client.ask("exec", exec=name, process={}, tty=False)
    assert answer["error"]["kind"] == "invalid_parameter"


def test_with_a_terminal(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    process = command("stty size; read a; stty size", terminal=True)
    client.ask("exec", exec="t", process=process, tty=True, stdin=True, console_size=[10, 20])
    eventually(lambda: output(log_of(container, "t")) == b"10 20\r\n")
    client.ask("resize", exec="t", rows=30, columns=40)
    client.ask("stdin", b"\n", session="s", offset=0, exec="t")
    client.event("exec_exit")
    assert output(log_of(container, "t")) == b"10 20\r\n\r\n30 40\r\n"


def test_without_output_there_is_no_log(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    client.ask("exec", exec="q", process=command("echo x"), tty=False, output=False)
    client.event("exec_exit")
    assert sorted(os.listdir(container.directory / "execs/q")) == ["exec.json", "exit.json"]


def test_watching_its_output(run: Run) -> None:
    client = run("sleep", "100").client()
    client.ask("exec", exec="w", process=command("cat"), tty=False, stdin=True)
    client.ask("watch_log", after=17, exec="w")
    client.ask("stdin", b"data", session="s", offset=0, exec="w")
    assert client.event("log") == {"event": "log", "exec": "w", "end": 17 + 20}


def test_what_it_leaves_in_the_background_does_not_hold_its_end_up(run: Run) -> None:
    client = run("sleep", "100").client()
    client.ask("exec", exec="b", process=command("sleep 1000 & echo up"), tty=False)
    assert client.event("exec_exit")["exit_code"] == 0


def test_a_reader_that_does_not_read_holds_its_output_back(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    flood = command("head -c 80000000 /dev/zero; echo done >&2")
    client.ask("exec", exec="f", process=flood, tty=False)
    reader = log_of(container, "f")
    bound = 64 << 20
    eventually(lambda: reader.end() > bound)
    assert client.ask("hello")["execs"][0]["log_end"] < bound + (2 << 20)
    received, offset = 0, 0
    while True:
        data = reader.read(offset, 1 << 20)
        if data:
            offset += len(data)
            received += len(data)
            client.ask("exec_trim", exec="f", offset=offset)
        elif any(e["event"] == "exec_exit" for e in client.events) and offset == reader.end():
            break
        else:
            client.ask("hello")
    assert received > 80_000_000
    assert sum(p.stat().st_size for p in container.directory.glob("execs/f/log/*.log")) < 9e6


def test_one_that_nobody_reads_any_more_runs_on(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    flood = command("head -c 200000000 /dev/zero")
    client.ask("exec", exec="f", process=flood, tty=False)
    client.ask("exec_trim", exec="f", offset=1 << 62)
    assert client.event("exec_exit")["exit_code"] == 0
    assert sum(p.stat().st_size for p in container.directory.glob("execs/f/log/*.log")) < 9e6


def test_the_end_of_the_container_is_theirs(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    client.ask("exec", exec="l", process=command("echo up; exec sleep 1000"), tty=False)
    eventually(lambda: output(log_of(container, "l")) == b"up\n")
    os.kill(client.ask("hello")["execs"][0]["pid"], 9)
    client.ask("kill", signal=9)
    assert client.event("exec_exit")["exit_code"] == 137
    assert client.event("exit")["exit_code"] == 137


def test_many_at_once(run: Run) -> None:
    container = run("sleep", "100")
    client = container.client()
    idents = [
        client.tell("exec", exec=f"m{n}", process=command(f"echo {n}; exit {n}"), tty=False)
        for n in range(20)
    ]
    assert all(client.answer(ident)["pid"] for ident in idents)
    ended = {e["exec"]: e["exit_code"] for e in (client.event("exec_exit") for _ in range(20))}
    assert ended == {f"m{n}": n for n in range(20)}
    assert [output(log_of(container, f"m{n}")) for n in range(20)] == [
        b"%d\n" % n for n in range(20)
    ]
