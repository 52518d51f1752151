"""A shim and its container: streams, signals, the end. Real processes, no namespaces."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from pathlib import Path

from .harness import Container, Launcher, Run, alive, eventually, everything, shell


def test_output_and_exit_code_are_recorded(run: Run) -> None:
    container = shell(run, "echo out; echo err >&2; exit 3")
    record = container.wait()
    assert (record["exit_code"], record["signal"], record["error"]) == (3, 0, "")
    assert record["pid"] == container.answer["pid"]
    assert record["started_ns"] == container.answer["started_ns"] <= record["finished_ns"]
    assert (container.output(1), container.output(2)) == (b"out\n", b"err\n")
    assert [s for s, _ in everything(container.reader())][0::3] == [16, 17]
    assert not (container.directory / "shim.sock").exists()


def test_a_signal_is_an_exit_code_of_128_and_more(run: Run) -> None:
    record = shell(run, "kill -9 $$").wait()
    assert (record["exit_code"], record["signal"]) == (137, 9)


def test_many_that_exit_at_once_keep_their_output_and_their_code(run: Run) -> None:
    for code in range(40):
        container = shell(run, f"echo {code}; exit {code}")
        assert container.wait()["exit_code"] == code
        assert container.output() == b"%d\n" % code


def test_a_program_that_is_not_there_leaves_no_run(run: Run) -> None:
    container = run("/nope")
    error = container.answer["error"]
    assert (error["kind"], error["exit_code"]) == ("invalid_parameter", 127)
    assert "/nope" in error["message"]
    eventually(lambda: not Path(f"/proc/{container.shim}").exists())
    assert set(os.listdir(container.directory)) <= {"busy"}
    assert [s for s, _ in everything(container.reader())] == [16, 17]


def test_what_is_no_start_command_is_refused(launcher: Launcher) -> None:
    for packet in (b"{", b"[]", b'{"op":"stop"}'):
        pid, sock = launcher.fork()
        with sock:
            sock.send(packet)
            assert json.loads(sock.recv(4096))["error"]["kind"] == "invalid_parameter"
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())


def test_a_launcher_leaves_nothing_and_takes_away_what_a_killed_one_left() -> None:
    left, used = (Path(f"/dev/shm/mooring-launch-{name}.{os.getpid()}") for name in "lu")
    for each in (left, used):
        each.mkdir()
        (each / "file").touch()
        os.utime(each, (0, 0))
    held = os.open(used, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    launcher = Launcher()
    pid, sock = launcher.fork()
    sock.close()
    assert not left.exists()
    assert (used / "file").exists()
    os.close(held)
    shutil.rmtree(used)
    assert not list(Path("/dev/shm").glob(f"mooring-launch-{launcher.process.pid}.*"))
    eventually(lambda: not alive(pid))
    launcher.close()


def test_a_warm_shim_ends_with_the_worker(launcher: Launcher) -> None:
    pid, sock = launcher.fork()
    sock.close()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_containers_outlive_the_launcher(tmp_path: Path) -> None:
    launcher = Launcher()
    with Container(launcher, tmp_path, ["sh", "-c", "read line; echo $line"], stdin=True) as one:
        os.kill(launcher.process.pid, 9)
        launcher.close()
        client = one.client()
        assert client.ask("stdin", b"still here\n", session="s", offset=0)["offset"] == 11
        assert one.wait()["exit_code"] == 0
        assert one.output() == b"still here\n"


def test_a_shim_holds_only_what_it_needs(run: Run) -> None:
    container = shell(run, "echo; exec sleep 100")
    client = container.client()
    client.ask("hello")
    links = {
        os.readlink(f"/proc/{container.shim}/fd/{fd}")
        for fd in range(20)
        if Path(f"/proc/{container.shim}/fd/{fd}").is_symlink()
    }
    expected = ("/dev/null", "pipe:", "socket:", "anon_inode:", str(container.log))
    assert all(link.startswith(expected) for link in links)
    assert os.getsid(container.shim) != os.getsid(0)
    assert Path(f"/proc/{container.shim}/comm").read_text() == "mooring-shim\n"


def test_the_record_is_there_before_the_program_runs(run: Run) -> None:
    container = shell(
        run,
        "cat shim.json",
        spec={"process": {"args": ["cat", "shim.json"], "cwd": "."}, "linux": {}},
    )
    container.wait()
    record = json.loads(container.output())
    assert record["init_pid"] == container.answer["pid"]
    assert record["shim_pid"] == container.shim
    assert (container.directory / record["exec_marker"]).exists()


def test_hello_tells_the_record_and_the_state(run: Run) -> None:
    container = shell(run, "echo hi; exec sleep 100")
    client = container.client()
    eventually(lambda: container.output() == b"hi\n")
    hello = client.ask("hello")
    assert hello["ok"] is True
    assert hello["log_end"] == container.reader().end()
    assert (hello["paused"], hello["execs"], hello["run"]) == (False, [], 1)


def test_the_agent_hears_of_start_and_end(run: Run, tmp_path: Path) -> None:
    path = tmp_path / ("deep" * 30)
    path.mkdir()
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(path, os.O_PATH)
    agent.bind(f"/proc/self/fd/{directory}/agent.sock")
    os.close(directory)
    agent.listen()
    agent.settimeout(20)
    container = shell(run, "exit 7", agent_socket=str(path / "agent.sock"))
    peer, _ = agent.accept()
    with agent, peer:
        peer.settimeout(20)
        hello = json.loads(peer.recv(1 << 16))
        assert (hello["event"], hello["init_pid"]) == ("hello", container.answer["pid"])
        end = json.loads(peer.recv(1 << 16))
        assert (end["event"], end["exit_code"], end["run"]) == ("exit", 7, 1)
        assert peer.recv(1 << 16) == b""
    assert container.wait() == {k: v for k, v in end.items() if k != "event"}


def test_a_request_that_is_not_understood_is_refused_and_the_next_is_answered(run: Run) -> None:
    client = run("sleep", "100").client()
    client.socket.send(b"{not json")
    assert client.receive()["error"]["kind"] == "invalid_parameter"
    assert client.ask("dance")["error"]["kind"] == "not_supported"
    assert client.ask("resize", rows="many")["error"]["kind"] == "invalid_parameter"
    assert client.ask("watch_log")["error"]["kind"] == "invalid_parameter"
    assert client.ask("exec_trim", exec="none", offset=1)["error"]["kind"] == "not_found"
    assert client.ask("hello")["ok"] is True


class TestWatching:
    def test_it_fires_once_when_the_log_has_grown(self, run: Run) -> None:
        container = shell(run, "read a; echo one; read a; echo two; read a", stdin=True)
        client = container.client()
        end = client.ask("hello")["log_end"]
        assert client.ask("watch_log", after=end)["ok"] is True
        client.ask("stdin", b"\n", session="s", offset=0)
        event = client.event("log")
        assert event["end"] == end + 16 + 4
        client.ask("stdin", b"\n", session="s", offset=1)
        eventually(lambda: container.output() == b"one\ntwo\n")
        client.ask("hello")
        assert client.events == []

    def test_it_fires_at_once_if_the_log_is_beyond(self, run: Run) -> None:
        client = run("sleep", "100").client()
        client.ask("watch_log", after=0)
        assert client.event("log")["end"] > 0

    def test_the_end_of_the_run_is_growth(self, run: Run) -> None:
        container = run("sleep", "100")
        client = container.client()
        client.ask("watch_log", after=client.ask("hello")["log_end"])
        client.ask("kill", signal=9)
        assert client.event("log")["end"] == container.reader().end()
        assert client.event("exit")["exit_code"] == 137


class TestStdin:
    def test_without_it_the_program_reads_nothing(self, run: Run) -> None:
        container = run("cat")
        assert container.wait()["exit_code"] == 0

    def test_bytes_sent_again_are_written_once(self, run: Run) -> None:
        container = shell(run, "cat", stdin=True, stdin_once=True)
        client = container.client()
        assert client.ask("stdin", b"abc", session="s", offset=0)["offset"] == 3
        assert client.ask("stdin", b"abcdef", session="s", offset=0)["offset"] == 6
        assert client.ask("stdin", b"cd", session="s", offset=2)["offset"] == 6
        assert client.ask("stdin", b"ef!", session="s", offset=4)["offset"] == 7
        assert client.ask("stdin", b"next", session="t", offset=0)["offset"] == 4
        answer = client.ask("stdin", session="s", offset=7, eof=True)
        assert (answer["offset"], answer["closed"]) == (7, True)
        container.wait()
        assert container.output() == b"abcdef!next"

    def test_a_gap_is_refused(self, run: Run) -> None:
        client = shell(run, "cat", stdin=True).client()
        client.ask("stdin", b"abc", session="s", offset=0)
        assert "offset 3" in client.ask("stdin", b"x", session="s", offset=9)["error"]["message"]

    def test_the_end_of_a_session_leaves_it_open_without_stdin_once(self, run: Run) -> None:
        container = shell(run, "read a; echo $a; read b; echo $b", stdin=True)
        client = container.client()
        assert client.ask("stdin", b"1\n", session="s", offset=0, eof=True)["closed"] is False
        assert client.ask("stdin", b"2\n", session="t", offset=0)["closed"] is False
        container.wait()
        assert container.output() == b"1\n2\n"

    def test_a_program_that_closed_it_answers_closed(self, run: Run) -> None:
        container = shell(run, "exec <&-; echo closed; sleep 100", stdin=True)
        client = container.client()
        eventually(lambda: container.output() == b"closed\n")
        assert client.ask("stdin", b"x", session="s", offset=0)["closed"] is True
        assert client.ask("stdin", b"x", session="s", offset=0)["closed"] is True

    def test_a_program_that_does_not_read_blocks_nobody(self, run: Run) -> None:
        container = shell(
            run,
            "while [ ! -e go ]; do sleep 0.02; done; exec wc -c",
            stdin=True,
            stdin_once=True,
            spec={
                "process": {
                    "cwd": ".",
                    "args": ["sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exec wc -c"],
                },
                "linux": {},
            },
        )
        client = container.client()
        chunk = b"x" * 100_000
        waiting = [client.tell("stdin", chunk, session="s", offset=n * 100_000) for n in range(5)]
        again = client.tell("stdin", chunk, session="s", offset=400_000, eof=True)
        assert client.ask("hello")["ok"] is True
        (container.directory / "go").touch()
        for number, ident in enumerate(waiting):
            assert client.answer(ident)["offset"] == (number + 1) * 100_000
        assert client.answer(again) == {"id": again, "ok": True, "offset": 500_000, "closed": True}
        container.wait()
        assert container.output().strip() == b"500000"

    def test_too_many_chunks_at_once_are_refused(self, run: Run) -> None:
        client = run("sleep", "100", stdin=True).client()
        idents = [
            client.tell("stdin", b"x" * 70_000, session="s", offset=n * 70_000) for n in range(70)
        ]
        assert client.answer(idents[-1])["error"]["kind"] == "unavailable"


class TestTerminal:
    def test_output_input_and_size(self, run: Run) -> None:
        container = shell(
            run,
            "stty size; read a; echo got:$a; stty size",
            tty=True,
            stdin=True,
            console_size=[40, 132],
        )
        client = container.client()
        eventually(lambda: b"40 132" in container.output())
        client.ask("resize", rows=50, columns=90)
        client.ask("stdin", b"word\n", session="s", offset=0)
        container.wait()
        assert container.output() == b"40 132\r\nword\r\ngot:word\r\n50 90\r\n"

    def test_what_a_program_prints_last_is_there(self, run: Run) -> None:
        container = shell(run, "seq 1 5000", tty=True)
        assert container.wait()["exit_code"] == 0
        assert container.output() == b"".join(b"%d\r\n" % n for n in range(1, 5001))

    def test_a_terminal_closed_by_all_and_opened_again_is_read_on(self, run: Run) -> None:
        script = "echo one; t=$(tty); exec <&- >&- 2>&-; sleep 0.2; echo two >$t; sleep 0.1"
        container = shell(run, script, tty=True)
        container.wait()
        assert container.output() == b"one\r\ntwo\r\n"


class TestSignals:
    def test_kill_sends_a_signal_to_init(self, run: Run) -> None:
        container = shell(
            run, "trap 'echo usr; exit 5' USR1; echo up; while :; do sleep 0.02; done"
        )
        client = container.client()
        eventually(lambda: container.output() == b"up\n")
        assert client.ask("kill", signal=10)["ok"] is True
        assert container.wait()["exit_code"] == 5

    def test_kill_all_reaches_every_process(self, run: Run) -> None:
        container = shell(run, "sleep 100 & sleep 100 & echo up; wait")
        client = container.client()
        eventually(lambda: container.output() == b"up\n")
        pids = client.ask("pids")["pids"]
        assert len(pids) == 3
        client.ask("kill", signal=9, all=True)
        assert container.wait()["exit_code"] == 137
        eventually(lambda: not any(alive(pid) for pid in pids))

    def test_pause_and_resume(self, run: Run) -> None:
        container = shell(run, "while :; do echo tick; sleep 0.01; done")
        client = container.client()
        client.ask("pause")
        assert client.ask("hello")["paused"] is True
        assert client.ask("exec", exec="e", process={}, tty=False)["error"]["kind"] == "conflict"
        client.ask("resume")
        end = container.reader().end()
        eventually(lambda: container.reader().end() > end)

    def test_sigkill_reaches_a_paused_container(self, run: Run) -> None:
        container = run("sleep", "100")
        client = container.client()
        client.ask("pause")
        client.ask("kill", signal=9)
        assert container.wait()["exit_code"] == 137

    def test_the_shim_itself_ignores_signals_for_the_container(self, run: Run) -> None:
        container = run("sleep", "100")
        for number in (1, 2, 15):
            os.kill(container.shim, number)
        assert container.client().ask("hello")["ok"] is True


def test_what_init_leaves_behind_is_killed(run: Run) -> None:
    container = shell(run, "sleep 1000 & echo $!")
    assert container.wait()["exit_code"] == 0
    assert not alive(int(container.output()))


def test_updates_and_stats_go_to_the_cgroup(run: Run) -> None:
    client = run("sleep", "100").client()
    assert client.ask("stats")["stats"] == {"pids": 1}
    assert client.ask("update", resources={})["ok"] is True
    assert "no such resource" in client.ask("update", resources={"refuse": 1})["error"]["message"]


def test_timings_name_the_steps(run: Run) -> None:
    timings = run("true", timings=True).answer["timings"]
    assert {"shim.prepare", "fake", "shim.start"} <= timings.keys()


def test_an_agent_that_never_reads_does_not_stop_the_shim(run: Run) -> None:
    container = shell(run, "while read line; do echo $line; done", stdin=True)
    deaf = container.client()
    deaf.socket.setblocking(False)
    for _ in range(3000):
        try:
            deaf.tell("hello")
        except (BlockingIOError, BrokenPipeError):
            break
    assert container.client().ask("hello")["ok"] is True
