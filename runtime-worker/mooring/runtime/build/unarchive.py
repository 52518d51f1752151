"""ADD of an archive: its members below one directory, which they cannot leave.

As Docker does it, links inside the archive are followed as if that directory were the root.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mooring.runtime.images.compress import Read
from mooring.runtime.images.tar import (
    BLOCK,
    HARD_LINK,
    SYMLINK,
    Member,
    TarError,
    TarReader,
)

from .place import Owner, Root, Times, put, put_directory
from .tree import KINDS, Entry, Kind

_CHECKSUM = slice(148, 156)
_SKIPPED = ("trusted.", "user.overlay.")


def looks_like_tar(read: Read) -> tuple[bool, Read]:
    """Whether a stream begins with a tar header, and a `read` that gives all of it."""
    start = b""
    while len(start) < BLOCK and (piece := read(BLOCK - len(start))):
        start += piece

    def again(limit: int) -> bytes:
        nonlocal start
        if start:
            piece, start = start[:limit], start[limit:]
            return piece
        return read(limit)

    return _is_header(start), again


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK or not any(block):
        return False
    try:
        stored = int(block[_CHECKSUM].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    return stored == sum(block) - sum(block[_CHECKSUM]) + 8 * 32


def extract(read: Read, directory: int, limit: int) -> None:
    """Extract a tar into an open directory; TarError, OSError."""
    root, times = Root(directory), Times()
    reader, total = TarReader(read), 0
    for member in reader:
        total += member.real_size
        if total > limit:
            raise TarError(f"the archive holds more than {limit} bytes")
        _member(reader, member, root, times)
    reader.drain()
    times.set()


def _member(reader: TarReader, member: Member, root: Root, times: Times) -> None:
    parts = [p for p in os.fsdecode(member.name).split("/") if p not in ("", ".")]
    if ".." in parts:
        raise TarError(f'invalid path "{os.fsdecode(member.name)}": it leads out of the archive')
    if not parts:
        return
    name = parts[-1]
    with _opened(root, "/".join(parts[:-1])) as parent:
        entry = _entry(member)
        owner = Owner(member.uid, member.gid)
        if member.type == HARD_LINK:
            _hard_link(member, root, parent, name)
        elif entry.kind is Kind.DIRECTORY:
            os.close(put_directory(parent, name, entry, owner, times))
        else:
            put(parent, name, entry, owner, lambda fd: _write(reader, member, fd))


@contextmanager
def _opened(root: Root, path: str) -> Iterator[int]:
    fd = root.make_directories(path) if path else os.dup(root.fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _hard_link(member: Member, root: Root, parent: int, name: str) -> None:
    parts = [p for p in os.fsdecode(member.link).split("/") if p not in ("", ".")]
    if ".." in parts or not parts:
        raise TarError(f'invalid hard link "{os.fsdecode(member.link)}"')
    above = root.directory("/".join(parts[:-1]))
    if above is None:
        raise TarError(f"hard link to {'/'.join(parts)}, which is not there")
    try:
        try:
            os.link(parts[-1], name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            if os.path.samestat(os.lstat(parts[-1], dir_fd=above), os.lstat(name, dir_fd=parent)):
                return
            os.unlink(name, dir_fd=parent)
            os.link(parts[-1], name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        raise TarError(f"hard link to {'/'.join(parts)}, which is not there") from None
    finally:
        os.close(above)


def _entry(member: Member) -> Entry:
    xattrs = {
        name: value
        for key, value in (member.xattrs or {}).items()
        if not (name := os.fsdecode(key)).startswith(_SKIPPED)
    }
    return Entry(
        KINDS.get(member.type, Kind.FILE),
        member.mode & 0o7777,
        size=member.real_size,
        mtime_ns=member.mtime_ns,
        link=os.fsdecode(member.link) if member.type == SYMLINK else "",
        device=(member.major, member.minor),
        xattrs=xattrs,
    )


def _write(reader: TarReader, member: Member, fd: int) -> None:
    extents = member.sparse if member.sparse is not None else [(0, member.size)]
    if member.sparse is not None:
        os.ftruncate(fd, member.real_size)
    for offset, length in extents:
        os.lseek(fd, offset, os.SEEK_SET)
        left = length
        while left:
            piece = reader.data(left)
            left -= len(piece)
            view = piece
            while view:
                written = os.write(fd, view)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                view = view[written:]
