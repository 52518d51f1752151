"""Writing a directory as a tar: an overlay's upper directory as a layer, or a tree as it is.

An upper directory says what was deleted by devices 0:0 and opaque directories; a layer says it by
names (`.wh.x`, `.wh..wh..opq`). A container may change the directory meanwhile: every step goes
through a descriptor and follows no link. Names are sorted, a directory's files before what is
below it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mooring.runtime.oci.linux import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2

from .tar import (
    BLOCK_DEVICE,
    CHARACTER,
    CHUNK,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Extent,
)
from .tarwrite import END, header, padding, sparse

Write = Callable[[bytes], object]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OVERLAY = "trusted.overlay."
_OPAQUE = "trusted.overlay.opaque"
_OF_THIS_HOST = (_OVERLAY, "user.overlay.", "security.selinux", "security.ima", "security.evm")
"""Extended attributes that mean nothing elsewhere."""
_HOLES = 1 << 16
"""Bytes of holes in a file that are worth a map."""
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ESTALE)
"""What opening says when something went, or became another thing, since it was listed."""


@dataclass(slots=True)
class Packed:
    """What went into a tar; size in bytes of the files."""

    size: int = 0
    entries: int = 0


def pack(
    root: Path | int, write: Write, *, upper: bool, clean: bool = False, with_root: bool = False
) -> Packed:
    """Write all that is below root; OSError.

    upper: it is an overlay's, with whiteouts. clean: take the overlay's own extended attributes
    off, as the directory is going to be a layer itself. with_root: an entry for root, too.
    root may be a descriptor.
    """
    if isinstance(root, int):
        return _Packer(root, write, upper=upper, clean=clean).run(with_root=with_root)
    fd = os.open(root, _DIRECTORY)
    try:
        return _Packer(fd, write, upper=upper, clean=clean).run(with_root=with_root)
    finally:
        os.close(fd)


class _Packer:
    def __init__(self, root: int, write: Write, *, upper: bool, clean: bool) -> None:
        self._root = root
        self._upper, self._clean = upper, clean
        self._out = _Buffered(write)
        self._links: dict[tuple[int, int], bytes] = {}
        self._done = Packed()

    def run(self, *, with_root: bool) -> Packed:
        pending = [b""]
        while pending:
            path = pending.pop()
            try:
                # Not by a descriptor of the parent: that many are not allowed to be open.
                fd = openat2(
                    self._root,
                    os.fsdecode(path) or ".",
                    _DIRECTORY,
                    RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS,
                )
            except OSError as exc:
                if exc.errno in _CHANGED and path:
                    continue
                raise
            try:
                below = self._directory(fd, path, entry=bool(path) or with_root)
            finally:
                os.close(fd)
            pending += reversed(below)
        self._out.write(END)
        self._out.flush()
        return self._done

    def _directory(self, fd: int, path: bytes, *, entry: bool) -> list[bytes]:
        """Write a directory and its files; the directories below it."""
        records, opaque = self._attributes(fd)
        if entry:
            self._entry(path + b"/" if path else b"./", DIRECTORY, os.fstat(fd), records=records)
        prefix = path + b"/" if path else b""
        if opaque and self._upper:
            self._whiteout(prefix + b".wh..wh..opq")
        below = []
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    below.append(prefix + name)
                else:
                    self._file(fd, name, prefix + name, status)
            except OSError as exc:
                if exc.errno not in _CHANGED:
                    raise
        return below

    def _file(self, directory: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        mode = status.st_mode
        if self._upper and stat.S_ISCHR(mode) and status.st_rdev == 0:
            parent, _, base = path.rpartition(b"/")
            self._whiteout(parent + b"/.wh." + base if parent else b".wh." + base)
            return
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first is not path:
                self._entry(path, HARD_LINK, status, link=first)
                return
        if stat.S_ISREG(mode):
            self._regular(directory, name, path)
        elif stat.S_ISLNK(mode):
            self._entry(path, SYMLINK, status, link=os.readlink(name, dir_fd=directory))
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
            kind = CHARACTER if stat.S_ISCHR(mode) else BLOCK_DEVICE
            self._entry(path, kind, status, device=device)
        elif stat.S_ISFIFO(mode):
            self._entry(path, FIFO, status)
        # A socket is nothing without the process that listens on it.

    def _regular(self, directory: int, name: bytes, path: bytes) -> None:
        fd = os.open(name, _FILE, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return
            records, _ = self._attributes(fd)
            size = status.st_size
            self._done.size += size
            if size - status.st_blocks * 512 > _HOLES:
                self._sparse(fd, path, status, records)
                return
            self._entry(path, REGULAR, status, size=size, records=records)
            self._copy(fd, 0, size)
            self._out.write(padding(size))
        finally:
            os.close(fd)

    def _sparse(
        self, fd: int, path: bytes, status: os.stat_result, records: list[tuple[bytes, bytes]]
    ) -> None:
        extents = list(_extents(fd, status.st_size))
        text, more = sparse(extents, status.st_size)
        data = sum(extent.length for extent in extents)
        more.append((b"GNU.sparse.name", path))
        # Readers that know nothing of this find the parts under another name.
        parent, _, base = path.rpartition(b"/")
        shown = b"/".join(filter(None, (parent, b"GNUSparseFile.0", base)))
        self._entry(shown, REGULAR, status, size=len(text) + data, records=[*records, *more])
        self._out.write(text)
        for extent in extents:
            self._copy(fd, *extent)
        self._out.write(padding(len(text) + data))

    def _copy(self, fd: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            # What a writer has cut off meanwhile is zeros, as it was said that it comes.
            piece = os.pread(fd, min(CHUNK, end - offset), offset) or bytes(
                min(CHUNK, end - offset)
            )
            self._out.write(piece)
            offset += len(piece)

    def _entry(
        self,
        path: bytes,
        kind: int,
        status: os.stat_result,
        *,
        size: int = 0,
        link: bytes = b"",
        device: tuple[int, int] = (0, 0),
        records: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self._done.entries += 1
        self._out.write(
            header(
                path,
                kind,
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                size=size,
                mtime_ns=status.st_mtime_ns,
                link=link,
                device=device,
                records=records or (),
            )
        )

    def _whiteout(self, path: bytes) -> None:
        self._done.entries += 1
        self._out.write(header(path, REGULAR))

    def _attributes(self, fd: int) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The extended attributes as PAX records, and whether a directory is opaque."""
        names = os.listxattr(fd)
        records, opaque = [], False
        for name in names:
            if name == _OPAQUE:
                opaque = os.getxattr(fd, name) == b"y"
            elif self._clean and name.startswith(_OVERLAY):
                os.removexattr(fd, name)
            if not name.startswith(_OF_THIS_HOST):
                records.append((b"SCHILY.xattr." + os.fsencode(name), os.getxattr(fd, name)))
        return records, opaque


class _Buffered:
    """Headers and small files together, large pieces as they are."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if data:
            self._pieces.append(data)
            self._size += len(data)
            if self._size >= CHUNK:
                self.flush()

    def flush(self) -> None:
        if self._pieces:
            self._write(b"".join(self._pieces))
            self._pieces, self._size = [], 0


def _extents(fd: int, size: int) -> list[Extent]:
    """Where a file has data; a last empty one says where it ends, as GNU tar writes it."""
    found = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                break
            raise
        if start >= size:
            break
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        found.append(Extent(start, position - start))
    if not found or found[-1].offset + found[-1].length < size:
        found.append(Extent(size, 0))
    return found
