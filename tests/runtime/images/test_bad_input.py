"""Archives that ask for too much or say what is not so, and a disk that is full."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.image import ImportImage
from mooring.runtime.images import extract, service
from mooring.runtime.images.service import ImageService
from mooring.runtime.images.store import spread
from mooring.runtime.images.tar import DIRECTORY, REGULAR
from mooring.runtime.images.tarwrite import END, header
from mooring.runtime.images.unpack import BadArchive, Job, Unpacked, start

from .archives import Entry, Image, docker_archive, layer
from .test_service import Lifecycle, _load, _send

pytestmark = pytest.mark.kernel


def _unpack(folder: Path, data: bytes, **options: int) -> Unpacked:
    blob = folder / "blob"
    blob.write_bytes(data)
    spread(folder)
    job = Job(blob=str(blob), target=str(folder / f"layer-{os.urandom(6).hex()}"))
    return start(replace(job, **options)).finish()  # type: ignore[arg-type]


_MEASURED = {
    # Names of directories are kept, those of files are not.
    "a layer": (
        "from mooring.runtime.images.unpack import Job, start;"
        "print(start(Job(blob=blob, target=blob + '.d')).finish().entries);"
        "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)",
        64,
    ),
    "a build context": (
        "from pathlib import Path; from mooring.runtime.build.context import Context;"
        "made = Context(Path(blob + '.s')); made.receive(open(blob, 'rb').read, 1 << 30);"
        "print(len(made) - 1);"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])",
        256,
    ),
}
"""What is run by a process that does nothing else, and how many MiB it may take."""


@pytest.mark.parametrize("what", _MEASURED)
def test_a_hundred_thousand_files_arrive_and_take_little_memory(tmp_path: Path, what: str) -> None:
    program, most = _MEASURED[what]
    blob = tmp_path / "blob"
    spread(tmp_path)
    with open(blob, "wb") as file:
        for number in range(100):
            file.write(header(b"%d/" % number, DIRECTORY, mode=0o755))
            for each in range(1000):
                file.write(header(b"%d/%d" % (number, each), REGULAR))
        file.write(END)
    command = [sys.executable, "-c", f"blob = {str(blob)!r}; {program}"]
    done = subprocess.run(command, capture_output=True, check=True)
    entries, peak = map(int, done.stdout.split())
    assert entries == 100_100
    assert peak < most << 10
    if what == "a layer":
        assert len(os.listdir(f"{blob}.d/fs/99")) == 1000
        subprocess.run(["rm", "-rf", f"{blob}.d"], check=True)


def test_parents_without_an_entry_count_as_files(tmp_path: Path) -> None:
    deep = header(b"d/" * 500 + b"f", REGULAR) + header(b"g", REGULAR) + END
    with pytest.raises(BadArchive, match=r"more than 400 files \(setting image_max_layer_files\)"):
        _unpack(tmp_path, deep, max_files=400)


@pytest.mark.parametrize("kind", ["implied", "told"])
def test_names_of_directories_are_kept_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(extract, "_IMPLIED" if kind == "implied" else "_NAMES", 10_000)
    paths = [b"%d/" % number + b"d/" * 50 for number in range(10)]
    parts = [header(p + b"f", REGULAR) for p in paths]
    if kind == "told":
        parts = [header(b"%d" % n + b"d" * 200 + b"/", DIRECTORY, mode=0o755) for n in range(60)]
    with pytest.raises(BadArchive, match="names of a layer's directories are too long together"):
        _unpack(tmp_path, b"".join([*parts, END]))


LIES = {
    "a file longer than the archive": header(b"f", REGULAR, size=1 << 40) + b"x" * 512,
    "an archive that is cut": layer([Entry("f", data=b"x" * 5000)])[:2048],
    "a checksum that is wrong": b"\xff" + layer([Entry("f")])[1:],
    "no archive at all": b"hello" * 1000,
    "a stream that is cut": gzip.compress(layer([Entry("f", data=os.urandom(9000))]))[:5000],
    "a name in its own file": layer([Entry("f", data=b"x"), Entry("f/g", data=b"x")]),
    "a link to nothing": layer([Entry("f", "link", link="nothing")]),
    "a negative size": header(b"f", REGULAR)[:124] + b"\xff" * 12 + header(b"f", REGULAR)[136:],
}


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_is_none_is_the_archives_fault(tmp_path: Path, lie: str) -> None:
    with pytest.raises(BadArchive):
        _unpack(tmp_path, LIES[lie])


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_size": 1 << 20}, "more than 1048576 bytes (setting image_max_layer_size)"),
        ({"max_files": 3}, "more than 3 files (setting image_max_layer_files)"),
    ],
)
def test_a_bomb_is_refused_by_the_name_of_the_setting(
    tmp_path: Path, limits: dict[str, int], words: str
) -> None:
    bomb = layer([Entry(name, data=bytes(600_000)) for name in "abcd"])
    with pytest.raises(BadArchive) as caught:
        _unpack(tmp_path, gzip.compress(bomb), **limits)
    assert words in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "store-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
async def lifecycle(bus: Bus) -> Lifecycle:
    from mooring.kit import subjects
    from mooring.kit.models.image import AddImage

    lifecycle = Lifecycle()
    await bus.serve(subjects.IMAGE_ADD, AddImage, lifecycle.add)
    return lifecycle


@pytest.mark.parametrize("what", ["the upload itself", "what it unpacks to"])
async def test_a_full_disk_fails_the_image_and_nothing_else(
    bus: Bus, settings: Settings, lifecycle: Lifecycle, small_disk: Path, what: str
) -> None:
    settings = settings.model_copy(update={"state_dir": small_disk})
    images = await service.serve(bus, settings)
    compression = "plain" if what == "the upload itself" else "gzip"
    large = layer([Entry("large", data=bytes(20 << 20))])
    try:
        with pytest.raises(EngineError, match="No space left on device"):
            await _load(bus, settings, docker_archive(Image([large]), compression=compression))
        await _nothing_left(images)
        small = layer([Entry("small", data=b"small")])
        loaded = await _load(bus, settings, docker_archive(Image([small], ["bb"])))
        assert loaded.lines == ["Loaded image: bb:latest"]
        await images.idle()
    finally:
        await images.close()


async def _nothing_left(images: ImageService) -> None:
    await images.idle()
    assert list(images.store.ingest.iterdir()) == []
    assert list(images.store.trash.iterdir()) == []
    assert list(images.store.blobs.iterdir()) == []
    assert list(images.store.all_layers()) == []


async def test_the_limits_are_settings(bus: Bus, settings: Settings, lifecycle: Lifecycle) -> None:
    settings = settings.model_copy(update={"image_max_layer_size": 1 << 20})
    images = await service.serve(bus, settings)
    try:
        bomb = gzip.compress(layer([Entry("large", data=bytes(2 << 20))]))
        with pytest.raises(InvalidParameter, match="image_max_layer_size"):
            await _send(bus, settings, bomb, ImportImage())
        await _nothing_left(images)
    finally:
        await images.close()
