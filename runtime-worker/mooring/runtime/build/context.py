"""A build context: its tar is read once, as it arrives, and never becomes files.

What is kept is an index (names, modes, the digest of each file) and one spool file that holds the
data of all files, one after the other. A hostile archive has nothing to escape from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from mooring.runtime.images.compress import Read, decompressed, detect, peek
from mooring.runtime.images.tar import (
    CHUNK,
    HARD_LINK,
    SYMLINK,
    Member,
    TarReader,
)

from .patterns import ignore, read_ignore
from .tree import KINDS, Entry, Kind, clean, resolve

_ENTRIES = 2_000_000
_LONGEST = 4095
"""Characters of a path; the kernel takes no more."""
_NAMES = 256 << 20
"""Bytes that all names, links and attributes of an index may have together."""
_TEXT = 1 << 20
"""Bytes of a Dockerfile or .dockerignore."""


class BadContext(ValueError):
    """The context cannot be used; the message is for the user."""


class Context:
    """The index over a spool; a Tree. Close it in the end."""

    def __init__(self, spool: Path) -> None:
        self._entries: dict[str, Entry] = {"": Entry(Kind.DIRECTORY)}
        self._names: dict[str, set[str]] = {"": set()}
        self._size = 0
        self._spool = os.open(spool, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close the spool."""
        os.close(self._spool)

    def __len__(self) -> int:
        """Files and directories in it."""
        return len(self._entries)

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        return self._entries.get(path)

    def names(self, path: str) -> list[str]:
        """See Tree."""
        return sorted(self._names.get(path, ()))

    def hashed(self, path: str, entry: Entry) -> bytes:
        """See Tree."""
        return entry.content

    def open(self, path: str, entry: Entry) -> tuple[int, int, bool]:
        """See Tree."""
        return self._spool, entry.offset, False

    def text(self, path: str) -> str | None:
        """A small file, through links; None if there is none. BadContext."""
        found = resolve(self, path)
        entry = self._entries.get(found) if found else None
        if found is None or entry is None:
            return None
        if entry.kind is not Kind.FILE:
            raise BadContext(f"{path} is not a regular file")
        if entry.size > _TEXT:
            raise BadContext(f"{path} is too large: {entry.size} bytes")
        return os.pread(self._spool, entry.size, entry.offset).decode("utf-8", "replace")

    def remove(self, path: str) -> None:
        """Take a file, or a directory with all that is in it, out of the index."""
        if path not in self._entries:
            return
        parent, _, name = path.rpartition("/")
        self._names[parent].discard(name)
        going = [path]
        while going:
            gone = going.pop()
            del self._entries[gone]
            going += [f"{gone}/{below}" for below in self._names.pop(gone, ())]

    def filter(self, dockerfile: str, *, everything: bool) -> None:
        """Apply its .dockerignore: to all files, or to itself and the Dockerfile alone.

        Clients leave out by themselves what is to be ignored, but always send these two.
        """
        text = self.text(".dockerignore")
        if text is None:
            return
        rules = ignore(read_ignore(text))
        if not everything:
            for path in (clean(dockerfile), ".dockerignore"):
                if rules.matches(path):
                    self.remove(path)
            return
        for path in sorted(self._entries, reverse=True):
            # A directory stays as long as something is left in it.
            if path and not self._names.get(path) and rules.matches(path):
                self.remove(path)

    # --- filling it ---

    def receive(self, read: Read, limit: int) -> None:
        """Read a tar, compressed or not; at most limit bytes of data. TarError and others."""
        start, again = peek(read)
        if not start:
            return
        reader = TarReader(decompressed(again, detect(start)))
        end = 0
        for member in reader:
            end = self._receive(reader, member, end, limit)
        reader.drain()

    def add_file(self, name: str, data: bytes) -> None:
        """One file that came in another way than in a tar."""
        offset = os.lseek(self._spool, 0, os.SEEK_END)
        os.pwrite(self._spool, data, offset)
        entry = Entry(Kind.FILE, 0o600, size=len(data), offset=offset)
        entry.content = hashlib.sha256(data).digest()
        self._put(clean(name), entry)

    def _receive(self, reader: TarReader, member: Member, end: int, limit: int) -> int:
        path = clean(os.fsdecode(member.name))
        if len(path) > _LONGEST:
            raise BadContext(f"a name in the build context is longer than {_LONGEST} characters")
        if len(self._entries) > _ENTRIES:
            raise BadContext(f"the build context has more than {_ENTRIES} files")
        if member.type == HARD_LINK:
            target = self._entries.get(clean(os.fsdecode(member.link)))
            if target is None or target.kind is not Kind.FILE:
                raise BadContext(f"{path} is a link to a file that is not in the build context")
            self._put(path, target)
            return end
        entry = Entry(
            KINDS.get(member.type, Kind.FILE),
            mode=member.mode & 0o7777,
            uid=member.uid,
            gid=member.gid,
            size=member.real_size,
            mtime_ns=member.mtime_ns,
            link=os.fsdecode(member.link) if member.type == SYMLINK else "",
            device=(member.major, member.minor),
            xattrs=_xattrs(member),
            offset=end,
        )
        self._count(len(entry.link) + sum(map(len, entry.xattrs.values())))
        if entry.kind is Kind.FILE:
            if end + entry.size > limit:
                raise BadContext(
                    f"the build context is larger than {limit} bytes (setting build_max_context)"
                )
            end = self._store(reader, member, entry)
        self._put(path, entry)
        return end

    def _store(self, reader: TarReader, member: Member, entry: Entry) -> int:
        """Append a file's data to the spool, its holes as holes."""
        extents = member.sparse if member.sparse is not None else [(0, member.size)]
        content, at = hashlib.sha256(), 0
        for offset, length in extents:
            _hash_zeros(content.update, offset - at)
            os.lseek(self._spool, entry.offset + offset, os.SEEK_SET)
            left = length
            while left:
                piece = reader.data(min(left, CHUNK))
                left -= len(piece)
                content.update(piece)
                written = 0
                while written < len(piece):
                    written += os.write(self._spool, piece[written:])
            at = offset + length
        _hash_zeros(content.update, entry.size - at)
        end = entry.offset + entry.size
        if at < entry.size:
            os.ftruncate(self._spool, end)
        entry.content = content.digest()
        return end

    def _put(self, path: str, entry: Entry) -> None:
        if not path:
            if entry.kind is Kind.DIRECTORY:
                self._entries[""] = entry
            return
        known = self._entries.get(path)
        if known is not None and known.kind is Kind.DIRECTORY is not entry.kind:
            self.remove(path)
        parts = path.split("/")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            found = self._entries.get(above)
            if found is None or found.kind is not Kind.DIRECTORY:
                self._enter(above, Entry(Kind.DIRECTORY))
        self._enter(path, entry)

    def _enter(self, path: str, entry: Entry) -> None:
        parent, _, name = path.rpartition("/")
        if path not in self._entries:
            self._count(len(path) + len(name))
        self._entries[path] = entry
        self._names[parent].add(name)
        if entry.kind is Kind.DIRECTORY:
            self._names.setdefault(path, set())

    def _count(self, size: int) -> None:
        """A file's parents are entries too: a long path is more than its own length."""
        self._size += size
        if self._size > _NAMES:
            raise BadContext("the names in the build context are too long together")


def _xattrs(member: Member) -> dict[str, bytes]:
    found = member.xattrs or {}
    return {
        os.fsdecode(name): value for name, value in found.items() if name == b"security.capability"
    }


def _hash_zeros(update: Callable[[bytes], object], count: int) -> None:
    while count > 0:
        update(bytes(min(count, CHUNK)))
        count -= CHUNK
