"""A project of three services with Debian's docker-compose: up, names, scale, kills, down."""

from __future__ import annotations

import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import docker as docker_py
import pytest

from .harness import SERVICES, Engine, engine, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose"),
]

COMPOSE = """
version: "2.4"
services:
  web:
    build: ./web
    depends_on:
      database: {condition: service_healthy}
      cache: {condition: service_started}
    networks: [front, back]
    ports: ["127.0.0.1::8080"]
    restart: unless-stopped
    stop_signal: SIGKILL
  database:
    image: bb
    entrypoint: [sh, -c, "echo stored >> /data/answer; exec \\"$$@\\"", sh]
    command: [nc, -ll, -p, "5432", -e, cat, /data/answer]
    healthcheck: {test: [CMD, test, -s, /data/answer], interval: 200ms}
    volumes: ["data:/data"]
    networks: {back: {aliases: [db]}}
    stop_signal: SIGKILL
  cache:
    image: bb
    command: [nc, -ll, -p, "6379", -e, echo, warm]
    volumes: ["data:/shared:ro"]
    networks: [back]
    stop_signal: SIGKILL
networks:
  front: {ipam: {config: [{subnet: 10.253.31.0/24}]}}
  back: {internal: true, ipam: {config: [{subnet: 10.253.32.0/24}]}}
volumes:
  data: {}
"""
DOCKERFILE = """
FROM bb
RUN mkdir -p /www/cgi-bin && echo built > /www/index.html
COPY ask /www/cgi-bin/ask
RUN chmod 755 /www/cgi-bin/ask
CMD ["httpd", "-f", "-v", "-p", "8080", "-h", "/www"]
"""
ASK = """#!/bin/sh
echo "Content-Type: text/plain"
echo
nc -w 5 database 5432 </dev/null
nc -w 5 db 5432 </dev/null
nc -w 5 cache 6379 </dev/null
"""


@dataclass
class Project:
    """The folder of a project, and docker-compose in it."""

    engine: Engine
    folder: Path

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker-compose", "--no-ansi", *args], cwd=self.folder, env=self.engine.env,
            capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def up(self, *args: str) -> str:
        """`docker-compose up -d`; what it said."""
        return self.run("up", "-d", *args).stderr

    def ids(self, *services: str) -> list[str]:
        return self.run("ps", "-q", *services).stdout.split()

    def ask(self, path: str = "/cgi-bin/ask") -> str:
        """What the web service answers at its published port."""
        address = self.run("port", "web", "8080").stdout.strip()
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return str(answer.read().decode())

    def edit(self, old: str, new: str) -> None:
        file = self.folder / "docker-compose.yml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def composed() -> Iterator[Engine]:
    with engine("--set", "bridge_subnet=10.253.30.0/24") as made:
        yield made


@pytest.fixture
def shop(composed: Engine) -> Iterator[Project]:
    folder = composed.folder / "shop"
    (folder / "web").mkdir(parents=True)
    (folder / "docker-compose.yml").write_text(COMPOSE)
    (folder / "web" / "Dockerfile").write_text(DOCKERFILE)
    (folder / "web" / "ask").write_text(ASK)
    project = Project(composed, folder)
    yield project
    # The image too: the next test builds its own.
    project.run("down", "-v", "--rmi", "local", "--remove-orphans", check=False)
    shutil.rmtree(folder)


def test_three_services_come_up_and_find_each_other_and_go_down_leaving_nothing(
    shop: Project,
) -> None:
    docker = shop.engine
    shop.up()
    assert shop.ask("/index.html") == "built\n"
    assert shop.ask().splitlines() == ["stored", "stored", "warm"]
    assert shop.run("exec", "-T", "cache", "cat", "/shared/answer").stdout == "stored\n"
    assert shop.run("exec", "-T", "cache", "sh", "-c", "echo > /shared/x", check=False).returncode
    health = docker.inspect("shop_database_1")["State"]["Health"]["Status"]
    assert health == "healthy"
    listed = docker.out("ps", "--filter", "label=com.docker.compose.project=shop", "-q")
    assert len(listed.split()) == 3
    assert "up-to-date" in shop.up()

    shop.run("down", "-v", "--rmi", "local")
    assert docker.out("ps", "-aq") == ""
    assert docker.out("volume", "ls", "-q") == ""
    assert docker.out("network", "ls", "--format", "{{.Name}}").split() == [
        "bridge",
        "host",
        "none",
    ]
    assert docker.out("images", "-q", "shop_web") == ""
    until("nothing is left", lambda: not docker.leftovers())


def test_a_dependency_that_never_gets_healthy_stops_the_project(shop: Project) -> None:
    shop.edit("[CMD, test, -s, /data/answer], interval: 200ms", "[CMD, 'false'], interval: 50ms")
    refused = shop.run("up", "-d", check=False)
    assert refused.returncode == 1
    assert "is unhealthy" in refused.stderr
    assert shop.ids("web") == []


def test_a_service_is_scaled_and_its_name_leads_to_every_copy(shop: Project) -> None:
    shop.up("--scale", "cache=3")
    endpoints = [shop.engine.inspect(item)["NetworkSettings"] for item in shop.ids("cache")]
    addresses = {item["Networks"]["shop_back"]["IPAddress"] for item in endpoints}
    assert len(addresses) == 3
    first = set()
    for _ in range(6):
        found = shop.run("exec", "-T", "web", "nslookup", "cache").stdout
        answers = [line.split()[1] for line in found.splitlines() if "Address: " in line]
        assert set(answers) == addresses
        first.add(answers[0])
    assert len(first) > 1
    shop.up("--scale", "cache=1")
    found = shop.run("exec", "-T", "web", "nslookup", "cache").stdout
    assert found.count("Address: ") == 1


def test_what_changed_is_made_again_and_keeps_its_data(shop: Project) -> None:
    shop.up()
    kept, cache = shop.ids("database"), shop.ids("cache")
    shop.edit("echo, warm", "echo, hot")
    shop.up()
    assert shop.ids("database") == kept
    assert shop.ids("cache") != cache
    assert shop.ask().splitlines() == ["stored", "stored", "hot"]
    shop.up("--force-recreate")
    assert shop.ask().splitlines() == ["stored"] * 4 + ["hot"]
    (shop.folder / "web" / "ask").write_text(ASK + "echo more\n")
    shop.up("--build")
    assert shop.ask().splitlines()[-2:] == ["hot", "more"]


def test_logs_are_followed_through_a_restart_of_the_service(shop: Project) -> None:
    loop = "echo first > /tmp/word; while :; do cat /tmp/word; sleep 0.1; done & exec "
    shop.edit("exec ", loop)
    shop.up()
    # With nothing left to read for 0.1 s, Compose goes home: the cache's log stays open.
    command = ["docker-compose", "logs", "-f", "--no-color", "database", "cache"]
    follower = subprocess.Popen(
        command, cwd=shop.folder, env=shop.engine.env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert follower.stdout is not None
        assert "shop_database_1" in follower.stdout.readline()
        assert follower.stdout.readline().split() == ["database_1", "|", "first"]
        shop.run("restart", "database")
        shop.run("exec", "-T", "database", "sh", "-c", "echo second > /tmp/word")
        assert any(line.split()[2:] == ["second"] for line in follower.stdout)
    finally:
        follower.kill()
        follower.wait()
        if follower.stdout is not None:
            follower.stdout.close()
    assert shop.ask().splitlines() == ["stored"] * 4 + ["warm"]


def test_one_off_containers_stops_and_pauses(shop: Project) -> None:
    shop.up()
    assert (
        shop.run("run", "--rm", "-T", "--no-deps", "web", "nc", "db", "5432").stdout == "stored\n"
    )
    shop.run("pause", "cache")
    assert shop.engine.state_of("shop_cache_1") == "paused"
    shop.run("unpause", "cache")
    shop.run("kill", "cache")
    assert shop.run("top", "cache").stdout.strip() in ("", "shop_cache_1")
    shop.run("stop")
    assert shop.engine.out("ps", "-q") == ""
    shop.run("start")
    assert shop.ask().splitlines() == ["stored", "stored", "stored", "stored", "warm"]


def test_docker_py_misses_no_output_of_a_short_exec(composed: Engine) -> None:
    # It reads the head of the answer through a buffer, and what follows past that.
    client = docker_py.DockerClient(base_url=composed.host)
    made = client.containers.run("bb", "sleep 1000", detach=True)
    try:
        outputs = [made.exec_run("echo out").output for _ in range(30)]
    finally:
        made.remove(force=True)
        client.close()
    assert outputs == [b"out\n"] * 30


@dataclass
class Client(threading.Thread):
    """Asks in a loop until it is told to stop."""

    url: str
    answers: int = 0
    wrong: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    __hash__ = threading.Thread.__hash__

    def has_more_than(self, answers: int) -> bool:
        return self.answers > answers

    def run(self) -> None:
        while not self.over.is_set():
            try:
                with urllib.request.urlopen(self.url, timeout=20) as answer:
                    text = answer.read().decode().split()
            except OSError as exc:
                self.wrong.append(exc)
                continue
            self.answers += 1
            if text != ["stored", "stored", "warm"]:
                self.wrong.append(text)


@pytest.mark.fault
def test_clients_of_the_project_do_not_notice_the_kill_of_any_service(shop: Project) -> None:
    docker = shop.engine
    shop.up()
    address = shop.run("port", "web", "8080").stdout.strip()
    client = Client(f"http://{address}/cgi-bin/ask")
    client.start()
    try:
        for service in (*SERVICES, "network"):
            before = client.answers
            old = docker.kill(service)
            docker.back(service, old)
            until("the client is answered", partial(client.has_more_than, before + 2))
    finally:
        client.over.set()
        client.join()
    assert client.wrong == []
    # And the project can be gone on with.
    shop.up("--scale", "cache=2")
    assert len(shop.ids("cache")) == 2
    shop.run("down", "-v")
    assert docker.out("ps", "-aq") == ""
