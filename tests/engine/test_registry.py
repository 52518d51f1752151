"""docker push, pull, login, search through the CLI, against Debian's registry."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import Engine, engine, until
from .registries import PASSWORD, USER, RealRegistry, big_layers, registry, trust

pytestmark = pytest.mark.kernel

MIB = 1 << 20


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that loses no time between attempts."""
    certs = tmp_path_factory.mktemp("certs")
    settings = {
        "MOORING_REGISTRY_RETRY_DELAY": "0.2",
        "MOORING_REGISTRY_STALL_TIMEOUT": "20",
        "MOORING_MAX_DOWNLOAD_ATTEMPTS": "40",
        "MOORING_REGISTRY_CERTS_DIR": str(certs),
    }
    with engine(**settings) as made:
        yield made


@pytest.fixture
def real() -> Iterator[RealRegistry]:
    with registry() as made:
        yield made


def images(docker: Engine) -> set[str]:
    return set(docker.out("images", "--format", "{{.Repository}}:{{.Tag}}").split())


def image(docker: Engine, name: str) -> Any:
    answer = docker.api("GET", f"/images/{name}/json")
    assert answer.status == 200, answer.body
    return answer.json


def forget(docker: Engine, *names: str) -> None:
    docker.docker("rmi", "-f", *names)


def test_what_is_pushed_can_be_pulled_and_run(docker: Engine, real: RealRegistry) -> None:
    name = f"{real.address}/team/bb:1"
    docker.docker("tag", "bb", name)
    pushed = docker.out("push", name)
    assert f"The push refers to repository [{real.address}/team/bb]" in pushed
    assert ": Pushed" in pushed
    digest = pushed.partition("digest: ")[2].split()[0]
    assert "Layer already exists" in docker.out("push", name)
    forget(docker, name)
    pulled = docker.out("pull", name)
    assert pulled.splitlines()[-1] == name
    assert f"Digest: {digest}" in pulled
    assert f"Status: Image is up to date for {name}" in pulled or "newer image" in pulled
    assert docker.out("run", "--rm", "--network", "none", name, "echo", "here") == "here"
    shown = docker.out("images", "--digests", "--format", "{{.Digest}}", f"{real.address}/team/bb")
    assert shown == digest
    by_digest = f"{real.address}/team/bb@{digest}"
    assert image(docker, by_digest)["RepoDigests"] == [by_digest]
    actions = [(e["Action"], e["Actor"]["ID"]) for e in docker.events(type="image")]
    assert ("push", name) in actions and ("pull", name) in actions
    forget(docker, name)
    assert by_digest not in str(images(docker))


def test_run_pulls_what_is_missing(docker: Engine, real: RealRegistry) -> None:
    name = f"{real.address}/run:1"
    docker.docker("tag", "bb", name)
    docker.docker("push", "-q", name)
    forget(docker, name)
    assert docker.out("run", "--rm", "--network", "none", name, "echo", "pulled") == "pulled"
    forget(docker, name)


def test_layers_of_another_repository_are_mounted(docker: Engine, real: RealRegistry) -> None:
    first, second = f"{real.address}/one:1", f"{real.address}/two:1"
    for name in (first, second):
        docker.docker("tag", "bb", name)
    docker.docker("push", "-q", first)
    assert "Mounted from one" in docker.out("push", second)
    forget(docker, first, second)


def test_all_tags_go_there_and_back(docker: Engine, real: RealRegistry) -> None:
    names = [f"{real.address}/all:{tag}" for tag in ("a", "b")]
    for name in names:
        docker.docker("tag", "bb", name)
    docker.docker("push", "-q", "-a", f"{real.address}/all")
    forget(docker, *names)
    docker.docker("pull", "-q", "-a", f"{real.address}/all")
    assert images(docker).issuperset(names)
    forget(docker, *names)


def test_a_password_is_asked_for_and_login_gives_it(docker: Engine) -> None:
    with registry(password=True) as real:
        name = f"{real.address}/private:1"
        docker.docker("tag", "bb", name)
        refused = docker.docker("push", name, check=False)
        assert refused.returncode == 1 and "no basic auth credentials" in refused.stderr
        bad = docker.docker("login", "-u", USER, "-p", "wrong", real.address, check=False)
        assert "401 Unauthorized" in bad.stderr
        done = docker.docker("login", "-u", USER, "-p", PASSWORD, real.address)
        assert "Login Succeeded" in done.stdout
        docker.docker("push", "-q", name)
        forget(docker, name)
        docker.docker("pull", "-q", name)
        docker.docker("logout", real.address)
        refused = docker.docker("pull", name, check=False)
        assert "no basic auth credentials" in refused.stderr
        forget(docker, name)


def test_tls_is_trusted_as_certs_d_says(docker: Engine) -> None:
    certs = Path(docker.env["MOORING_REGISTRY_CERTS_DIR"])
    with registry(tls=True) as real:
        name = f"{real.address}/secure:1"
        docker.docker("tag", "bb", name)
        trust(certs, real, client=False)
        refused = docker.docker("push", name, check=False)
        assert "remote error: tls: bad certificate" in refused.stderr
        (certs / real.address / "ca.crt").unlink()
        (certs / real.address).rmdir()
        trust(certs, real, client=True)
        docker.docker("push", "-q", name)
        forget(docker, name)
        docker.docker("pull", "-q", name)
        forget(docker, name)


WORDS = [
    ("{a}/none:1", "manifest for {a}/none:1 not found: manifest unknown: manifest unknown"),
    ("127.0.0.1:1/x", 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection'),
    ("{a}/Upper", "must be lowercase"),
]


@pytest.mark.parametrize(("name", "words"), WORDS)
def test_what_cannot_be_pulled_is_refused_in_dockers_words(
    docker: Engine, real: RealRegistry, name: str, words: str
) -> None:
    failed = docker.docker("pull", name.format(a=real.address), check=False)
    assert failed.returncode == 1
    assert words.format(a=real.address) in failed.stderr


def test_a_registry_is_asked_for_what_it_has(docker: Engine, real: RealRegistry) -> None:
    name = f"{real.address}/bb:1"
    docker.docker("tag", "bb", name)
    docker.docker("push", "-q", name)
    forget(docker, name)
    answer = docker.api("GET", f"/distribution/{name}/json")
    assert answer.status == 200, answer.body
    assert answer.json["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
    assert docker.api("GET", f"/distribution/{real.address}/no:1/json").status == 404
    found = docker.api("GET", f"/images/search?term={real.address}/bb")
    assert (found.status, found.message) == (500, "Unexpected status code 404")


# --- kills ---


def transfers(docker: Engine) -> list[int]:
    """The processes of this engine that talk to registries."""
    children = Path(f"/proc/{docker.pids()['runtime']}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    found = []
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"registry.transfers" in line:
            found.append(pid)
    return found


@pytest.fixture(scope="module")
def big(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that takes a moment."""
    path = tmp_path_factory.mktemp("big") / "big.tar"
    path.write_bytes(big_layers(4, 12 * MIB))
    docker.docker("load", "-q", "-i", str(path))
    yield "big:1"
    forget(docker, "big:1")


def left(docker: Engine) -> list[str]:
    """What is on its way in the store."""
    return [
        str(path)
        for name in ("ingest", "downloads")
        for path in (docker.state / name).iterdir()
        if not (name == "ingest" and not (path / "pending").exists())
    ]


@pytest.mark.fault
@pytest.mark.parametrize("victim", ["runtime", "transfers", "registry", "lifecycle"])
def test_pulls_and_pushes_survive_kills_at_any_moment(
    docker: Engine, real: RealRegistry, big: str, victim: str
) -> None:
    chance = random.Random(victim)
    name = f"{real.address}/{victim}/big:1"
    docker.docker("tag", big, name)
    before = image(docker, name)["Id"]

    def strike() -> None:
        time.sleep(chance.uniform(0.0, 0.6))  # the moment is the test
        if victim == "registry":
            real.kill()
            real.start()
        elif victim == "transfers":
            for pid in transfers(docker):
                os.kill(pid, signal.SIGKILL)
        else:
            docker.back(victim, docker.kill(victim))

    def through(*command: str) -> None:
        running = docker.popen(*command)
        strike()
        _, err = running.communicate(timeout=100)
        if victim == "registry" and "connection refused" in err:
            # It was not there when the command began, which is no fault of the engine's.
            docker.docker(*command)
        else:
            assert running.returncode == 0, err

    for _ in range(2):
        through("push", name)
    docker.docker("rmi", "-f", before)
    docker.docker("rmi", "-f", name, check=False)
    for turn in range(2):
        through("pull", name)
        assert image(docker, name)["Id"] == before
        if turn == 0:
            docker.docker("rmi", "-f", name)
    docker.docker("tag", name, big)
    docker.docker("rmi", "-f", name)
    until("nothing is left", lambda: not left(docker))


@pytest.mark.fault
def test_a_client_that_leaves_ends_the_pull(docker: Engine, real: RealRegistry, big: str) -> None:
    name = f"{real.address}/leave:1"
    docker.docker("tag", big, name)
    docker.docker("push", "-q", name)
    docker.docker("rmi", "-f", image(docker, name)["Id"])
    running = docker.popen("pull", name)
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    until("nothing is under way", lambda: not list(docker.state.glob("ingest/*/layer-*")))
    docker.docker("pull", "-q", name)
    docker.docker("tag", name, big)
    forget(docker, name)


@pytest.mark.fault
def test_a_disk_that_is_full_in_the_middle_of_a_layer_is_said_and_nothing_stays(
    docker: Engine, real: RealRegistry, big: str
) -> None:
    name = f"{real.address}/full:1"
    docker.docker("tag", big, name)
    docker.docker("push", "-q", name)
    mounted: list[str] = []
    small: Engine | None = None
    folder = Path("/tmp") / f"moor-full-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "state").mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder / "state")], check=True
        )
        mounted.append(str(folder / "state"))
        small = Engine(folder, MOORING_REGISTRY_RETRY_DELAY="0.1")
        small.up()
        failed = small.docker("pull", name, check=False)
        assert failed.returncode == 1
        assert "No space left on device" in failed.stderr
        blobs = small.state / "content/blobs/sha256"
        until("the trash is empty", lambda: not list((small.state / "trash").iterdir()))
        assert not list(blobs.iterdir())
        assert not list(small.state.glob("downloads/*"))
        assert json.loads(small.docker("images", "--format", "json").stdout or "[]") == []
    finally:
        if small is not None:
            small.down("--containers")
        for path in mounted:
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(folder, ignore_errors=True)
        forget(docker, name)
