"""COPY and ADD: which files are meant, what they are called in the cache, and placing them."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mooring.runtime.images.compress import CompressionError, Read, decompressed, detect, peek
from mooring.runtime.images.tar import TarError

from . import unarchive
from .dockerfile.errors import StepError
from .patterns import BadPattern, compile_match, has_wildcards
from .place import (
    ROOT,
    Data,
    Owner,
    Root,
    Times,
    copy_bytes,
    copy_data,
    put,
    put_directory,
)
from .rootfs import RootTree
from .tree import Entry, Kind, Tree, clean, digest, resolve, walk

_TABLE = 1 << 20
"""Bytes of an image's passwd or group file."""
_MODE = re.compile(r"0?[0-7]{1,4}")


@dataclass(frozen=True, slots=True)
class Source:
    """One file or directory to be copied. path: where it is in the tree, its links followed."""

    tree: Tree
    path: str
    name: str
    """What it is called at the destination, if that is a directory."""
    entry: Entry
    digest: str
    archive: bool = False
    """ADD: unpack it if it is an archive."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a COPY or ADD comes to. destination is absolute; a slash at its end means something."""

    sources: tuple[Source, ...]
    destination: str
    chown: str = ""
    mode: int | None = None
    shown: str = ""
    """The destination as the Dockerfile has it."""
    keeps_owners: bool = False
    """What comes from another image is whose it was there, unless --chown says otherwise."""

    @property
    def digest(self) -> str:
        """What the sources are, for the cache."""
        if len(self.sources) == 1:
            return self.sources[0].digest
        joined = ",".join(source.digest for source in self.sources)
        return f"multi:{hashlib.sha256(joined.encode()).hexdigest()}"

    def text(self, name: str) -> str:
        """How the history tells of it."""
        chown = f"--chown={self.chown} " if self.chown else ""
        chmod = f"--chmod={self.mode:o} " if self.mode is not None else ""
        return f"#(nop) {name} {chown}{chmod}{self.digest} in {self.shown} "


def find(tree: Tree, pattern: str, *, name: str, context: bool, archive: bool) -> list[Source]:
    """The sources that a word of COPY means; StepError."""
    if context and _leaves(pattern):
        raise StepError(f"{name} failed: forbidden path outside the build context: {pattern} ()")
    path = clean(pattern)
    if not has_wildcards(pattern):
        return [_source(tree, path, pattern, name=name, context=context, archive=archive)]
    try:
        compiled = compile_match(path)
    except BadPattern as exc:
        raise StepError(f"{name} failed: {exc}") from exc
    found = [p for p, _ in walk(tree, "") if compiled.fullmatch(p)]
    return [_source(tree, p, p, name=name, context=context, archive=archive) for p in found]


def _source(
    tree: Tree, path: str, shown: str, *, name: str, context: bool, archive: bool
) -> Source:
    real = resolve(tree, path)
    entry = tree.entry(real) if real is not None else None
    if real is None or entry is None:
        shown = shown.lstrip("/") or shown
        reason = "file not found in build context or excluded by .dockerignore: " if context else ""
        raise StepError(f"{name} failed: {reason}stat {shown}: file does not exist")
    own = posixpath.basename(path)
    return Source(tree, real, own, entry, digest(tree, real, entry), archive)


def _leaves(path: str) -> bool:
    depth = 0
    for part in path.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def plan(
    sources: Sequence[Source],
    destination: str,
    workdir: str,
    chown: str,
    chmod: str,
    name: str,
    *,
    keeps_owners: bool = False,
) -> Plan:
    """Put together what was found; StepError."""
    if not sources:
        raise StepError(f"{name} failed: no source files were specified")
    mode: int | None = None
    if chmod:
        if not _MODE.fullmatch(chmod):
            raise StepError(f"invalid chmod parameter: '{chmod}'. it should be octal string and "
                            "between 0 and 07777")  # fmt: skip
        mode = int(chmod, 8)
    ends = destination.endswith("/") or posixpath.basename(destination) in (".", "..")
    joined = posixpath.join("/", workdir or "/", destination)
    path = "/" + posixpath.normpath(joined).lstrip("/")
    if ends and path != "/":
        path += "/"
    if len(sources) > 1 and not path.endswith("/"):
        raise StepError(
            f"When using {name} with more than one source file, the destination must be a "
            "directory and end with a /"
        )
    return Plan(tuple(sources), path, chown, mode, destination, keeps_owners and not chown)


def perform(made: Plan, root: int, name: str, *, limit: int) -> None:
    """Copy into a mounted root file system; StepError for what the user got wrong, OSError.

    limit: bytes that an archive may have unpacked.
    """
    target = Root(root)
    owner = find_owner(made.chown, RootTree(root)) if made.chown else ROOT
    for source in made.sources:
        try:
            _perform(made, source, target, owner, limit)
        except (TarError, CompressionError) as exc:
            raise StepError(f"{name} failed: {exc}") from exc
        except (NotADirectoryError, IsADirectoryError) as exc:
            raise StepError(f"{name} failed: {exc.strerror or exc}") from exc


def _perform(made: Plan, source: Source, target: Root, owner: Owner, limit: int) -> None:
    times = Times()
    destination = made.destination
    if source.entry.kind is Kind.DIRECTORY:
        directory = target.make_directories(destination, owner)
        try:
            _copy_tree(source, directory, None if made.keeps_owners else owner, made.mode, times)
        finally:
            os.close(directory)
        times.set()
        return
    if source.archive and (read := _archive(source)) is not None:
        directory = target.make_directories(destination)
        try:
            unarchive.extract(read, directory, limit)
        finally:
            os.close(directory)
        return
    if destination.endswith("/") or target.is_directory(destination):
        destination = posixpath.join(destination, source.name)
    above, _, name = destination.rpartition("/")
    directory = target.make_directories(above, owner)
    try:
        placed = _with_mode(source.entry, made.mode)
        put(directory, name, placed, _own(placed) if made.keeps_owners else owner, _data(source))
    finally:
        os.close(directory)


def _copy_tree(
    source: Source, directory: int, owner: Owner | None, mode: int | None, times: Times
) -> None:
    """The content of a directory into another one; without an owner everything keeps its own."""
    tree = source.tree
    open_directories: list[tuple[str, int]] = [("", os.dup(directory))]
    try:
        for relative, entry in walk(tree, source.path):
            parent, _, name = relative.rpartition("/")
            while open_directories[-1][0] != parent:
                os.close(open_directories.pop()[1])
            into = open_directories[-1][1]
            placed = _with_mode(entry, mode)
            if entry.kind is Kind.DIRECTORY:
                fd = put_directory(into, name, placed, owner or _own(placed), times)
                open_directories.append((relative, fd))
                continue
            full = f"{source.path}/{relative}" if source.path else relative
            put(into, name, placed, owner or _own(placed), _data_of(tree, full, entry))
    finally:
        for _, fd in open_directories:
            os.close(fd)


def _own(entry: Entry) -> Owner:
    return Owner(entry.uid, entry.gid)


def _with_mode(entry: Entry, mode: int | None) -> Entry:
    if mode is None or entry.kind is Kind.SYMLINK:
        return entry
    return replace(entry, mode=mode)


def _data(source: Source) -> Data | None:
    return _data_of(source.tree, source.path, source.entry)


def _data_of(tree: Tree, path: str, entry: Entry) -> Data | None:
    if entry.kind is not Kind.FILE or not entry.size:
        return None

    def write(target: int) -> None:
        fd, offset, close = tree.open(path, entry)
        try:
            copy_data(fd, offset, entry.size)(target)
        finally:
            if close:
                os.close(fd)

    return write


def _archive(source: Source) -> Read | None:
    """The bytes of a tar inside a source, decompressed; None if it is no archive."""
    if source.entry.kind is not Kind.FILE or not source.entry.size:
        return None
    fd, offset, close = source.tree.open(source.path, source.entry)
    own = fd if close else os.dup(fd)
    at, end = offset, offset + source.entry.size

    def read(limit: int) -> bytes:
        nonlocal at
        piece = os.pread(own, min(limit, end - at), at)
        at += len(piece)
        return piece

    start, again = peek(read)
    plain = decompressed(again, detect(start))
    try:
        is_tar, plain = unarchive.looks_like_tar(plain)
    except CompressionError:
        is_tar = False
    if not is_tar:
        os.close(own)
        return None
    return _closing(plain, own)


def _closing(read: Read, fd: int) -> Read:
    """A `read` that closes its file at the end of it."""
    is_open = True

    def again(limit: int) -> bytes:
        nonlocal is_open
        piece = read(limit)
        if not piece and is_open:
            is_open = False
            os.close(fd)
        return piece

    return again


def find_owner(text: str, tree: RootTree) -> Owner:
    """`user[:group]` by number or by the image's own passwd and group files; StepError."""
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise StepError(f"invalid chown string format: {text}")
    uid, primary = _look_up(user, "etc/passwd", tree, "user", "uid")
    if not colon:
        return (
            Owner(uid, uid if primary is None else primary)
            if user.isdecimal()
            else Owner(uid, primary or 0)
        )
    return Owner(uid, _look_up(group, "etc/group", tree, "group", "gid")[0])


def _look_up(
    name: str, table: str, tree: RootTree, what: str, number: str
) -> tuple[int, int | None]:
    """The number of a name, and for a user its group."""
    if name.isdecimal():
        return int(name), None
    data = tree.read(table, _TABLE) or b""
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) > 2 and fields[2].isdecimal():
            group = fields[3] if what == "user" and len(fields) > 3 else ""
            return int(fields[2]), int(group) if group.isdecimal() else None
    raise StepError(
        "unable to convert uid/gid chown string to host mapping: "
        f"can't find {number} for {what} {name}: no such {what}: {name}"
    )


def document(name: str, content: str, mode: int = 0o644) -> tuple[Source, Callable[[int], None]]:
    """A heredoc as a source, and what writes it."""
    data = content.encode("utf-8", "surrogateescape")
    entry = Entry(Kind.FILE, mode, size=len(data), content=hashlib.sha256(data).digest())
    tree = _Document(entry, data)
    return Source(tree, name, name, entry, digest(tree, name, entry)), copy_bytes(data)


class _Document:
    """A Tree of one file that is in memory."""

    def __init__(self, entry: Entry, data: bytes) -> None:
        self._entry = entry
        self._data = data

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        return self._entry if path else None

    def names(self, path: str) -> list[str]:
        """See Tree."""
        return []

    def hashed(self, path: str, entry: Entry) -> bytes:
        """See Tree."""
        return entry.content

    def open(self, path: str, entry: Entry) -> tuple[int, int, bool]:
        """See Tree."""
        fd = os.memfd_create("heredoc", os.MFD_CLOEXEC)
        copy_bytes(self._data)(fd)
        return fd, 0, True
