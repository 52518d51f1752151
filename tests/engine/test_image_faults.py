"""Load, save and commit while the worker, or its loader, is killed at any moment."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Engine, engine, until

pytestmark = [pytest.mark.kernel, pytest.mark.fault]

LAYERS = 4
SIZE = 12 << 20


@pytest.fixture(scope="module")
def e() -> Iterator[Engine]:
    with engine("--set", "faults=true") as made:
        yield made


@pytest.fixture(scope="module")
def archive(e: Engine) -> Path:
    """An image of several layers, large enough to be killed in the middle of."""
    path = e.folder / "large.tar"
    names, diff_ids = [], []
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for number in range(LAYERS):
            layer = io.BytesIO()
            with tarfile.open(fileobj=layer, mode="w") as inner:
                info = tarfile.TarInfo(f"file-{number}")
                info.size = SIZE
                inner.addfile(info, io.BytesIO(random.Random(number).randbytes(SIZE)))
            data = layer.getvalue()
            names.append(f"{number}/layer.tar")
            diff_ids.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
            add(names[-1], data)
        config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["x"]},
                  "rootfs": {"type": "layers", "diff_ids": diff_ids}}  # fmt: skip
        add("config.json", json.dumps(config).encode())
        manifest = [{"Config": "config.json", "RepoTags": ["large:1"], "Layers": names}]
        add("manifest.json", json.dumps(manifest).encode())
    return path


def assert_sound(e: Engine) -> None:
    """Every blob is what its name says, every layer has its blob, nothing is half-made."""
    blobs = {path.name: path for path in (e.state / "content/blobs/sha256").iterdir()}
    for name, path in blobs.items():
        with open(path, "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == name
    for path in (e.state / "layers").glob("*/layer.json"):
        assert json.loads(path.read_bytes())["blob"][7:] in blobs
    until("nothing is coming in", lambda: not list((e.state / "ingest").iterdir()))


def loaders(e: Engine) -> list[int]:
    """The loaders of this engine, and their children."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if b"mooring.runtime.images.loader" in line and str(e.state).encode() in line:
                found.append(int(entry))
    return found


@pytest.mark.parametrize("victim", ["runtime", "loader", "nats"])
def test_a_load_that_is_killed_leaves_nothing_and_succeeds_when_it_is_repeated(
    e: Engine, archive: Path, victim: str
) -> None:
    loading = e.popen("load", "-i", str(archive))
    until("it comes in", lambda: loaders(e))
    until("bytes are there", lambda: list((e.state / "ingest").glob("*/members/1"))
          or loading.poll() is not None)  # fmt: skip
    if victim == "loader":
        for pid in loaders(e):
            os.kill(pid, signal.SIGKILL)
    else:
        e.back(victim, e.kill(victim))
    loading.communicate(timeout=90)
    assert_sound(e)
    e.docker("load", "-i", str(archive))
    assert e.out("inspect", "-f", "{{len .RootFS.Layers}}", "large:1") == str(LAYERS)
    assert_sound(e)
    e.docker("rmi", "large:1")
    until("its blobs are gone", lambda: len(list((e.state / "layers").glob("?" * 64))) == 1)


@pytest.mark.parametrize("point", ["runtime.image.stored", "runtime.image.remove.layer"])
def test_a_worker_killed_at_this_point_leaves_a_store_that_is_sound(
    e: Engine, archive: Path, point: str
) -> None:
    e.docker("load", "-i", str(archive))
    e.docker("rmi", "large:1")
    old = e.pids()["runtime"]
    e.arm(point)
    e.docker("load", "-i", str(archive), check=False)
    e.docker("rmi", "large:1", check=False)
    until("the worker died", lambda: e.fired(point))
    e.back("runtime", old)
    e.docker("load", "-i", str(archive))
    assert_sound(e)
    e.docker("rmi", "large:1")
    until("its layers are gone", lambda: len(list((e.state / "layers").glob("?" * 64))) == 1)


def test_a_save_goes_on_at_the_byte_when_the_worker_is_killed(e: Engine, archive: Path) -> None:
    e.docker("load", "-i", str(archive))
    whole = e.api("GET", "/images/large:1/get").body
    killed = threading.Event()

    def kill() -> None:
        for _ in range(2):
            old = e.kill("runtime")
            killed.set()
            e.back("runtime", old)

    killer = threading.Thread(target=kill)
    out = e.folder / "resumed.tar"
    saving = e.popen("save", "large:1", "-o", str(out))
    time.sleep(random.uniform(0, 0.1))
    killer.start()
    _, errors = saving.communicate(timeout=120)
    killer.join()
    assert (saving.returncode, errors) == (0, "")
    assert out.read_bytes() == whole
    e.docker("rmi", "large:1")


def test_a_container_is_not_left_paused_when_its_commit_is_killed(e: Engine) -> None:
    e.docker("run", "-d", "--name", "box", "bb", "sleep", "1000")
    old = e.pids()["runtime"]
    e.arm("runtime.commit.paused")
    e.docker("commit", "box", "never", check=False)
    e.back("runtime", old)
    e.in_state("box", "running")
    assert e.docker("commit", "box", "works").returncode == 0
    e.in_state("box", "running")
    assert_sound(e)
    e.remove_all()
