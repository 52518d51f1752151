"""A tree of files as COPY and ADD see it: looked up, matched, hashed, and read."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from mooring.runtime.images import tar

_LINKS = 255


class Kind(Enum):
    """What an entry is; the value is part of what is hashed."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "symlink"
    FIFO = "fifo"
    CHARACTER = "char"
    BLOCK = "block"


KINDS = {
    tar.REGULAR: Kind.FILE,
    tar.DIRECTORY: Kind.DIRECTORY,
    tar.SYMLINK: Kind.SYMLINK,
    tar.FIFO: Kind.FIFO,
    tar.CHARACTER: Kind.CHARACTER,
    tar.BLOCK_DEVICE: Kind.BLOCK,
}
"""By the type of an archive's member."""


@dataclass(slots=True)
class Entry:
    """One file. Names are the bytes of the archive, decoded with surrogateescape."""

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    content: bytes = b""
    """SHA-256 of a file's data."""
    offset: int = 0
    """Where the data begins in the spool of a context."""


class Tree(Protocol):
    """Where the sources of a COPY come from. Paths are relative and clean; the root is ''.

    Looking up follows no link; whoever wants links followed uses `resolve`, which stays inside.
    """

    def entry(self, path: str) -> Entry | None:
        """What is at a path, with `content` filled in for a file if `hashed` was asked for."""

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted."""

    def hashed(self, path: str, entry: Entry) -> bytes:
        """SHA-256 of a file's data."""

    def open(self, path: str, entry: Entry) -> tuple[int, int, bool]:
        """A file's data as (descriptor, offset, whether the caller closes it)."""


def clean(path: str) -> str:
    """A path relative to a tree's root, without `.`, `..` and slashes at the ends."""
    return posixpath.normpath("/" + path).lstrip("/")


def resolve(tree: Tree, path: str, *, follow_last: bool = True) -> str | None:
    """The path that is meant, with every link on the way followed inside the tree; or None."""
    pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
    done: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            del done[-1:]
            continue
        if part == ".":
            continue
        here = "/".join([*done, part])
        entry = tree.entry(here)
        if entry is None:
            return None
        if entry.kind is Kind.SYMLINK and (pending or follow_last):
            links += 1
            if links > _LINKS:
                return None
            if entry.link.startswith("/"):
                done = []
            pending += [p for p in entry.link.split("/") if p][::-1]
        elif pending and entry.kind is not Kind.DIRECTORY:
            return None
        else:
            done.append(part)
    return "/".join(done)


def walk(tree: Tree, path: str) -> Iterator[tuple[str, Entry]]:
    """Everything below a directory, parents first, sorted; paths relative to it."""
    pending = [(name, f"{path}/{name}" if path else name) for name in tree.names(path)][::-1]
    while pending:
        relative, full = pending.pop()
        entry = tree.entry(full)
        if entry is None:
            continue
        yield relative, entry
        if entry.kind is Kind.DIRECTORY:
            pending += [(f"{relative}/{n}", f"{full}/{n}") for n in tree.names(full)][::-1]


def digest(tree: Tree, path: str, entry: Entry) -> str:
    """`file:<hex>` or `dir:<hex>`: names, modes, owners, content; not times."""
    total = hashlib.sha256()
    if entry.kind is not Kind.DIRECTORY:
        _add(total, tree, path, posixpath.basename(path), entry)
        return f"file:{total.hexdigest()}"
    for relative, below in walk(tree, path):
        _add(total, tree, f"{path}/{relative}" if path else relative, relative, below)
    return f"dir:{total.hexdigest()}"


def _add(total: hashlib._Hash, tree: Tree, path: str, name: str, entry: Entry) -> None:
    fields = (name, entry.kind.value, entry.mode, entry.uid, entry.gid, entry.link, entry.device)
    total.update(repr(fields).encode("utf-8", "surrogateescape"))
    for key, value in sorted(entry.xattrs.items()):
        total.update(f"\0{key}=".encode() + value)
    if entry.kind is Kind.FILE:
        total.update(tree.hashed(path, entry))
