"""Files of a container as a tar stream: few system calls to a file, big blocks.

Standard library only. Whatever changes while it is read: a file that shrinks is filled up with
zeros, one that grows is cut, what vanishes is left out; links are never followed.
"""

from __future__ import annotations

import os
import stat

from .frames import header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    _Level = tuple[int, bytes, Iterator[os.DirEntry[str]]]
    """An open directory, its name in the archive, and what is still to come of it."""

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLUSH = 256 << 10
_FRAME = 1 << 30
_SMALL = 64 << 10
"""Bytes up to which a file goes through the buffer; larger ones never enter this process."""
_REST = b"ustar\x0000" + bytes(64) + b"%b" + bytes(167)
_CONSTANT = sum(b"ustar\x0000") + 8 * 32
_MOST_OCTAL = 0o7777777
_MOST_SIZE = 0o77777777777
_ZEROS = bytes(512)
_PADDING = [bytes(-n % 512) for n in range(512)]


class Packer:
    """Writes one archive to a descriptor, in frames (frames.py) if that is wanted."""

    def __init__(self, out: int, *, framed: bool = False) -> None:
        self._out = out
        self._framed = framed
        self._parts: list[bytes] = []
        self._held = 0
        self._linked: dict[tuple[int, int], bytes] = {}

    def pack(self, directory: int, name: str, shown: str) -> None:
        """The entry `name` of a directory, and all below it; `shown` is its name in the archive."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        prefix = os.fsencode(shown)
        if stat.S_ISDIR(status.st_mode):
            self._tree(os.open(name, _DIRECTORY, dir_fd=directory), prefix)
        else:
            self._other(directory, name, prefix, stat.S_ISREG(status.st_mode))
        self._write(_ZEROS + _ZEROS)
        self._flush()

    def _tree(self, top: int, prefix: bytes) -> None:
        """Depth first with a descriptor to a level: as deep as there may be open files."""
        stack: list[_Level] = []
        self._open(top, prefix, stack)
        while stack:
            directory, path, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(directory)
                stack.pop()
                continue
            name = path + os.fsencode(entry.name)
            try:
                if entry.is_dir(follow_symlinks=False):
                    below = os.open(entry.name, _DIRECTORY, dir_fd=directory)
                    self._open(below, name, stack)
                else:
                    regular = entry.is_file(follow_symlinks=False)
                    self._other(directory, entry.name, name, regular)
            except (FileNotFoundError, NotADirectoryError):
                continue  # Gone, or something else by now.

    def _open(
        self,
        directory: int,
        path: bytes,
        stack: list[tuple[int, bytes, Iterator[os.DirEntry[str]]]],
    ) -> None:
        if not path.endswith(b"/"):
            path += b"/"
        self._header(path, os.fstat(directory), b"5", 0)
        with os.scandir(directory) as found:
            entries = sorted(found, key=_name)
        stack.append((directory, path, iter(entries)))

    def _other(self, directory: int, name: str, path: bytes, regular: bool) -> None:
        if regular:
            try:
                descriptor = os.open(name, _FILE, dir_fd=directory)
            except OSError as error:
                if error.errno not in (6, 40):  # ENXIO, ELOOP: it is something else by now
                    raise
            else:
                try:
                    self._regular(descriptor, path)
                finally:
                    os.close(descriptor)
                return
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if status.st_nlink > 1 and kind != stat.S_IFDIR and self._is_link(status, path):
            return
        if kind == stat.S_IFLNK:
            self._header(path, status, b"2", 0, os.fsencode(os.readlink(name, dir_fd=directory)))
        elif kind == stat.S_IFIFO:
            self._header(path, status, b"6", 0)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            self._header(path, status, b"3" if kind == stat.S_IFCHR else b"4", 0)

    def _is_link(self, status: os.stat_result, path: bytes) -> bool:
        inode = (status.st_dev, status.st_ino)
        known = self._linked.get(inode)
        if known is None:
            self._linked[inode] = path
            return False
        self._header(path, status, b"1", 0, known)
        return True

    def _regular(self, descriptor: int, path: bytes) -> None:
        status = os.fstat(descriptor)
        mode, size = status.st_mode, status.st_size
        if not stat.S_ISREG(mode):
            return
        if status.st_nlink > 1 and self._is_link(status, path):
            return
        capability = b""
        if mode & 0o111:
            try:
                capability = os.getxattr(descriptor, "security.capability")
            except OSError:
                pass
        self._header(path, status, b"0", size, capability=capability)
        if not size:
            return
        if size <= _SMALL:
            data = os.read(descriptor, size)
            if len(data) < size:
                data = data.ljust(size, b"\0")
            self._parts.append(data)
            self._parts.append(_PADDING[size % 512])
            self._held += size + 512
            if self._held >= _FLUSH:
                self._flush()
            return
        self._flush()
        offset = 0
        while offset < size:
            length = min(size - offset, _FRAME)
            self._send_file(descriptor, offset, length)
            offset += length
        self._write(_PADDING[size % 512])

    def _send_file(self, descriptor: int, offset: int, length: int) -> None:
        """A part of a file, exactly so long, without its bytes entering this process."""
        if self._framed:
            self._send(header(length))
        end = offset + length
        while offset < end:
            count = os.sendfile(self._out, descriptor, offset, end - offset)
            if not count:
                break
            offset += count
        while offset < end:
            piece = bytes(min(end - offset, _FLUSH))
            self._send(piece)
            offset += len(piece)

    def _header(
        self,
        path: bytes,
        status: os.stat_result,
        kind: bytes,
        size: int,
        link: bytes = b"",
        capability: bytes = b"",
    ) -> None:
        uid, gid, mtime = status.st_uid, status.st_gid, int(status.st_mtime)
        if (
            len(path) > 100
            or len(link) > 100
            or size > _MOST_SIZE
            or uid > _MOST_OCTAL
            or gid > _MOST_OCTAL
            or mtime < 0
            or capability
        ):
            records = b"".join(
                _record(key, value)
                for key, value, needed in (
                    (b"path", path, len(path) > 100),
                    (b"linkpath", link, len(link) > 100),
                    (b"size", b"%d" % size, size > _MOST_SIZE),
                    (b"uid", b"%d" % uid, uid > _MOST_OCTAL),
                    (b"gid", b"%d" % gid, gid > _MOST_OCTAL),
                    (b"mtime", b"%d" % mtime, mtime < 0),
                    (b"SCHILY.xattr.security.capability", capability, bool(capability)),
                )
                if needed
            )
            self._block(
                b"PaxHeaders.0/" + path[-80:].lstrip(b"/"), 0o644, 0, 0, len(records), 0, b"x"
            )
            self._write(records + _PADDING[len(records) % 512])
            path, link = path[:100], link[:100]
            uid, gid = min(uid, _MOST_OCTAL), min(gid, _MOST_OCTAL)
            size, mtime = min(size, _MOST_SIZE), max(mtime, 0)
        device = b""
        if kind in b"34":
            device = b"%07o\0%07o\0" % (os.major(status.st_rdev), os.minor(status.st_rdev))
        mode = status.st_mode & 0o7777
        self._block(path, mode, uid, gid, size, mtime, kind, link, device)

    def _block(
        self, path: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes,
        link: bytes = b"", device: bytes = b"",
    ) -> None:  # fmt: skip
        fields = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime)
        checksum = sum(path) + sum(fields) + sum(link) + sum(device) + kind[0] + _CONSTANT
        rest = _PLAIN_REST if not device else _REST % device.ljust(16, b"\0")
        self._parts.append(
            b"%b%b%06o\0 %b%b%b"
            % (path.ljust(100, b"\0"), fields, checksum, kind, link.ljust(100, b"\0"), rest)
        )
        self._held += 512

    def _write(self, data: bytes) -> None:
        self._parts.append(data)
        self._held += len(data)
        if self._held >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        data = b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        if self._framed:
            self._send(header(len(data)))
        self._send(data)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]


_PLAIN_REST = _REST % bytes(16)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _record(key: bytes, value: bytes) -> bytes:
    # Its length counts itself.
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    if len(str(length)) != len(str(body)):
        length = body + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
