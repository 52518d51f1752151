"""`docker logs`: every byte, from where the user asks."""

from __future__ import annotations

import re

import pytest

from .harness import Engine, numbers, until

pytestmark = pytest.mark.kernel


def test_both_streams_are_kept_apart_and_in_order(docker: Engine) -> None:
    docker.docker("run", "--name", "web", "bb", "sh", "-c", "echo one; echo two >&2; echo three")
    done = docker.docker("logs", "web")
    assert (done.stdout, done.stderr) == ("one\nthree\n", "two\n")


def test_tail_since_until_and_timestamps(docker: Engine) -> None:
    script = "for i in 1 2 3 4 5; do echo $i; sleep 0.05; done"
    docker.docker("run", "--name", "web", "bb", "sh", "-c", script)
    assert docker.out("logs", "--tail", "2", "web").split() == ["4", "5"]
    assert docker.out("logs", "--tail", "0", "web") == ""
    stamped = docker.out("logs", "--timestamps", "web").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{9}Z \d$", line) for line in stamped)
    third = stamped[2].split()[0]
    assert docker.out("logs", "--since", third, "web").split() == ["3", "4", "5"]
    assert docker.out("logs", "--until", third, "web").split() == ["1", "2", "3"]


def test_follow_ends_with_the_container_and_has_every_line(docker: Engine) -> None:
    script = "for i in $(seq 1 300); do echo $i; done; sleep 0.2; seq 301 600"
    docker.docker("run", "-d", "--name", "web", "bb", "sh", "-c", script)
    assert numbers(docker.out("logs", "-f", "web")) == list(range(1, 601))


def test_a_flood_is_complete(docker: Engine) -> None:
    docker.docker("run", "--name", "web", "-d", "bb", "seq", "1", "400000")
    assert docker.out("wait", "web") == "0"
    assert numbers(docker.out("logs", "web")) == list(range(1, 400_001))


def test_an_attached_client_that_reads_slowly_loses_nothing(docker: Engine) -> None:
    reader = docker.popen("run", "--rm", "bb", "seq", "1", "400000")
    assert reader.stdout is not None
    out = reader.stdout.readline()
    # the container has long ended before the rest is read
    until("it is gone", lambda: docker.out("ps", "-q") == "")
    out += reader.stdout.read()
    reader.communicate(timeout=60)
    assert numbers(out) == list(range(1, 400_001))


def test_the_log_is_rotated_by_size_and_count(docker: Engine) -> None:
    options = ("--log-opt", "max-size=100k", "--log-opt", "max-file=2")
    docker.docker("run", "-d", "--name", "web", *options, "bb", "seq", "1", "200000")
    assert docker.out("wait", "web") == "0"
    kept = numbers(docker.out("logs", "web"))
    assert kept[-1] == 200_000
    assert kept == list(range(kept[0], 200_001))
    assert len(docker.out("logs", "web")) < 3_000_000


def test_a_line_without_its_end_is_shown(docker: Engine) -> None:
    docker.docker("run", "--name", "web", "bb", "printf", "no newline")
    assert docker.docker("logs", "web").stdout == "no newline"


def test_a_terminals_output_is_raw(docker: Engine) -> None:
    docker.docker("run", "-d", "-t", "--name", "web", "bb", "sh", "-c", "echo a; exit 0")
    docker.docker("wait", "web")
    answer = docker.api("GET", "/containers/web/logs?stdout=1")
    assert answer.body == b"a\r\n"


def test_neither_stream_is_refused(docker: Engine) -> None:
    docker.docker("create", "--name", "web", "bb", "true")
    answer = docker.api("GET", "/containers/web/logs")
    assert answer.status == 400
    assert "you must choose at least one stream" in answer.message
