"""Where images are on disk: blobs by digest, layers by chain id, and what is on its way in or out.

Everything arrives in `ingest/<job>/` and appears at its place in one step; everything leaves by one
rename into `trash/`. Whatever a killed process leaves is in one of these two. Standard library
only: the loader, a small process, uses it too.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

_SHORT = 12
_UNSETTLED = "unsettled"
"""In a layer's directory, with the id of the boot it was made in, until it is on disk."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_TOPDIR = 0x20000


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """`layer.json` beside an unpacked layer: what it is made of. Digests are `sha256:<hex>`."""

    chain_id: str
    diff_id: str
    blob: str
    """The digest of the layer as it is in the content store, compressed or not."""
    compression: str
    size: int
    """Bytes of the files, unpacked."""
    parent: str = ""
    """The chain id of the layer below."""


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of every layer, from the bottom up."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(chain_id_on(chains[-1] if chains else "", diff_id))
    return chains


def chain_id_on(below: str, diff_id: str) -> str:
    """The chain id of a layer upon another, or (below is empty) upon nothing."""
    if not below:
        return diff_id
    return f"sha256:{hashlib.sha256(f'{below} {diff_id}'.encode()).hexdigest()}"


def hex_of(digest: str) -> str:
    """The 64 hex digits of `sha256:…`; ValueError for anything else, as they become file names."""
    algorithm, _, digits = digest.partition(":")
    if algorithm != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"invalid checksum digest format: {digest!r}")
    return digits


class ImageStore:
    """The directories `content`, `layers`, `ingest` and `trash` of a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.blobs = state_dir / "content" / "blobs" / "sha256"
        self.layers = state_dir / "layers"
        self.short = self.layers / "s"
        self.ingest = state_dir / "ingest"
        self.trash = state_dir / "trash"
        self._layout = state_dir / "content" / "oci-layout"

    def prepare(self) -> None:
        """Make the directories; only root may look into layers, for their set-uid files."""
        for directory in (self.blobs, self.short, self.ingest, self.trash):
            directory.mkdir(parents=True, exist_ok=True)
        self.layers.chmod(0o700)
        if not self._layout.exists():
            self._layout.write_text('{"imageLayoutVersion":"1.0.0"}\n')

    # --- blobs ---

    def blob(self, digest: str) -> Path:
        """Where the blob of that digest is, or would be."""
        return self.blobs / hex_of(digest)

    def add_blob(self, file: Path, digest: str, *, settled: bool = True) -> None:
        """Link a file, whose digest was verified while it was written, to its place.

        settled: it is on disk then; else it gets there with the layer made of it (`unsettled`).
        """
        target = self.blob(digest)
        if target.exists():
            return
        if settled:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        target.hardlink_to(file)
        if settled:
            _sync_directory(self.blobs)

    def replace_blob(self, old: str, file: Path, digest: str, compression: str) -> None:
        """Have the layers made of one blob made of another, which unpacks to the same."""
        self.add_blob(file, digest)
        for info in list(self.all_layers()):
            if info.blob == old:
                path = self.layer(info.chain_id) / "layer.json"
                made = path.with_name(".layer.json")
                made.write_text(
                    json.dumps(asdict(replace(info, blob=digest, compression=compression)))
                )
                made.rename(path)
        self.blob(old).unlink(missing_ok=True)

    def read_blob(self, digest: str) -> bytes:
        """All of a small blob, verified; ValueError if it is damaged."""
        data = self.blob(digest).read_bytes()
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise ValueError(f"blob {digest} is damaged")
        return data

    # --- layers ---

    def layer(self, chain_id: str) -> Path:
        """The directory of an unpacked layer; its files are in `fs` below it."""
        return self.layers / hex_of(chain_id)

    def has_layer(self, chain_id: str) -> bool:
        """Whether that layer is unpacked here."""
        return (self.layer(chain_id) / "layer.json").exists()

    def layer_info(self, chain_id: str) -> LayerInfo:
        """What is known of an unpacked layer; FileNotFoundError."""
        return LayerInfo(**json.loads((self.layer(chain_id) / "layer.json").read_bytes()))

    def add_layer(self, built: Path, info: LayerInfo) -> bool:
        """Move a finished layer (a directory with `fs` in it) to its place; False: it was there."""
        with open(built / "layer.json", "w", encoding="ascii") as file:
            json.dump(asdict(info), file)
            file.flush()
            os.fsync(file.fileno())
        (built / _UNSETTLED).write_text(_boot_id())
        target = self.layer(info.chain_id)
        try:
            built.rename(target)
        except OSError:
            if not self.has_layer(info.chain_id):
                raise
            return False
        self._link(info.chain_id)
        return True

    def lower(self, chain_id: str) -> str:
        """The short path of a layer's files, for overlay options; FileNotFoundError."""
        name = hex_of(chain_id)
        link = self.short / name[:_SHORT]
        wanted = f"../{name}/fs"
        try:
            if os.readlink(link) == wanted:
                return str(link)
        except FileNotFoundError:
            pass
        if not self.has_layer(chain_id):
            raise FileNotFoundError(f"layer {chain_id} is not unpacked here")
        # Killed between the two renames, or two layers share twelve digits.
        return str(link) if self._link(chain_id) else str(self.layer(chain_id) / "fs")

    def _link(self, chain_id: str) -> bool:
        name = hex_of(chain_id)
        link = self.short / name[:_SHORT]
        with suppress(FileExistsError):
            link.symlink_to(f"../{name}/fs")
        return os.readlink(link) == f"../{name}/fs"

    def remove_layer(self, chain_id: str) -> LayerInfo | None:
        """Take a layer away; its blob goes when no other layer was made of it."""
        name = hex_of(chain_id)
        link = self.short / name[:_SHORT]
        with suppress(OSError):
            if os.readlink(link) == f"../{name}/fs":
                link.unlink()
        try:
            info = self.layer_info(chain_id)
        except FileNotFoundError:
            return None
        self.discard(self.layer(chain_id))
        if all(other.blob != info.blob for other in self.all_layers()):
            self.blob(info.blob).unlink(missing_ok=True)
        return info

    def all_layers(self) -> Iterator[LayerInfo]:
        """Every layer that is unpacked here."""
        for entry in self.layers.iterdir():
            if len(entry.name) == 64:
                with suppress(FileNotFoundError):
                    yield self.layer_info(f"sha256:{entry.name}")

    def unsettled(self) -> list[Path]:
        """Markers of layers that are not on disk for sure; unlink them after a sync of `layers`."""
        return list(self.layers.glob(f"*/{_UNSETTLED}"))

    def doubtful(self) -> list[str]:
        """Chain ids of layers that the host went down over before they were on disk."""
        boot_id = _boot_id()
        return [
            f"sha256:{marker.parent.name}"
            for marker in self.unsettled()
            if marker.read_text() != boot_id
        ]

    def exchange_layer(self, built: Path, info: LayerInfo) -> None:
        """Put a layer that was built again in the place of the one there, which is in built then.

        One step: a layer that images refer to is never missing.
        """
        (built / "layer.json").write_text(json.dumps(asdict(info)))
        (built / _UNSETTLED).write_text(_boot_id())
        old, new = os.fsencode(self.layer(info.chain_id)), os.fsencode(built)
        if _libc.renameat2(_AT_FDCWD, new, _AT_FDCWD, old, _RENAME_EXCHANGE) < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(built))

    # --- coming and going ---

    def new_job(self) -> Path:
        """A directory for something on its way in."""
        job = self.ingest / secrets.token_hex(8)
        job.mkdir(mode=0o700)
        spread(job)
        return job

    def discard(self, path: Path) -> None:
        """Move something into the trash, which is emptied in the background."""
        with suppress(FileNotFoundError):
            path.rename(self.trash / f"{secrets.token_hex(8)}-{path.name[:12]}")


def spread(directory: Path) -> None:
    """Have ext4 put each new directory in this one where there is room, by the hash of its name.

    Where many files were deleted lately, making one takes ext4 up to ten times as long: without a
    journal it looks at every inode that was in use within the last minutes.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = struct.unpack("i", fcntl.ioctl(fd, _GET_FLAGS, bytes(4)))[0]
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("i", flags | _TOPDIR))
    except OSError:
        # Another file system, which has no such flag.
        pass
    finally:
        os.close(fd)


def begin_writeback(fd: int, offset: int, count: int) -> None:
    """sync_file_range(2): have the kernel begin to write those bytes to disk; waits for nothing."""
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(count), _SYNC_FILE_RANGE_WRITE)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
