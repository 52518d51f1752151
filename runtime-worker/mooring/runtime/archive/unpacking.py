"""A tar stream into a directory of a container, as `docker cp` does it.

The process's root is the container's view (view.py), so absolute links and `..` end there.
Directories are held by descriptors; nothing is followed but the links that lead to a parent.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from collections import OrderedDict

from mooring.runtime.images import compress
from mooring.runtime.images.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
    TarError,
    TarReader,
)
from mooring.runtime.oci.linux import RESOLVE_NO_MAGICLINKS, openat2

_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT = os.O_PATH | os.O_DIRECTORY
_HELD = 64
"""Directories that are kept open."""


class Refused(Exception):
    """The archive asks for what may not be done; the message is the user's."""


class Unpacker:
    """Extracts one archive into a directory; `top` is its path, for messages."""

    def __init__(
        self, directory: int, top: str, *, no_overwrite: bool, ids: tuple[int, int] | None
    ) -> None:
        self._directory = directory
        self._top = top
        self._no_overwrite = no_overwrite
        self._ids = ids
        self._parents: OrderedDict[bytes, int] = OrderedDict()
        self._times: dict[bytes, int] = {}

    def unpack(self, reader: TarReader) -> None:
        """Extract all; Refused, TarError, OSError."""
        os.umask(0)
        for member in reader:
            name = _clean(member.name)
            if name == b".." or name.startswith(b"../"):
                raise Refused(f'{_quoted(name)} is outside of "{self._top}"')
            if name == b".":
                continue
            try:
                self._member(name, member, reader)
            except OSError as exc:
                if exc.errno is None or exc.errno == errno.EBADMSG:
                    raise
                raise OSError(exc.errno, self._path(name)) from exc
            except OverflowError:
                raise Refused("archive/tar: invalid tar header") from None
        reader.drain()
        for name, time in reversed(self._times.items()):
            parent, _, base = name.rpartition(b"/")
            directory = self._parent(parent)
            os.utime(base, ns=(time, time), dir_fd=directory, follow_symlinks=False)

    def _path(self, name: bytes) -> str:
        return posixpath.join(self._top, name.decode("utf-8", "backslashreplace"))

    def _parent(self, path: bytes) -> int:
        """The directory at a path, made with all above it if it is missing."""
        if not path:
            return self._directory
        known = self._parents.get(path)
        if known is not None:
            self._parents.move_to_end(path)
            return known
        try:
            found = openat2(self._directory, os.fsdecode(path), _PARENT, RESOLVE_NO_MAGICLINKS)
        except FileNotFoundError:
            above, _, base = path.rpartition(b"/")
            os.mkdir(base, 0o755, dir_fd=self._parent(above))
            found = openat2(self._directory, os.fsdecode(path), _PARENT, RESOLVE_NO_MAGICLINKS)
        self._parents[path] = found
        if len(self._parents) > _HELD:
            os.close(self._parents.popitem(last=False)[1])
        return found

    def _member(self, name: bytes, member: Member, reader: TarReader) -> None:
        above, _, base = name.rpartition(b"/")
        directory = self._parent(above)
        kind = member.type
        if kind == DIRECTORY:
            self._make_directory(directory, base, name, member)
            return
        try:
            self._make(directory, base, name, member, reader)
        except FileExistsError:
            self._clear(directory, base, name)
            self._make(directory, base, name, member, reader)

    def _make(
        self, directory: int, base: bytes, name: bytes, member: Member, reader: TarReader
    ) -> None:
        kind = member.type
        if kind == REGULAR:
            self._regular(directory, base, member, reader)
            return
        if kind == HARD_LINK:
            self._link(directory, base, name, member)
            return
        if kind == SYMLINK:
            self._check_symlink(name, member)
            os.symlink(member.link, base, dir_fd=directory)
        elif kind in (CHARACTER, BLOCK_DEVICE):
            file_type = stat.S_IFCHR if kind == CHARACTER else stat.S_IFBLK
            device = os.makedev(member.major, member.minor)
            os.mknod(base, file_type | member.mode, device, dir_fd=directory)
        elif kind == FIFO:
            os.mkfifo(base, member.mode, dir_fd=directory)
        else:
            raise Refused(f"unhandled tar header type {kind}")
        uid, gid = self._ids or (member.uid, member.gid)
        if uid or gid:
            os.chown(base, uid, gid, dir_fd=directory, follow_symlinks=False)
            if kind != SYMLINK:
                os.chmod(base, member.mode, dir_fd=directory)
        time = member.mtime_ns
        os.utime(base, ns=(time, time), dir_fd=directory, follow_symlinks=False)

    def _regular(self, directory: int, base: bytes, member: Member, reader: TarReader) -> None:
        mode = member.mode
        fd = os.open(base, _CREATE, mode, dir_fd=directory)
        try:
            reader.write_to(fd, member)
            uid, gid = self._ids or (member.uid, member.gid)
            if uid or gid:
                os.fchown(fd, uid, gid)
            if mode & 0o6000:
                # Writing and changing the owner take these bits away.
                os.fchmod(fd, mode)
            if member.xattrs:
                _set_xattrs(fd, member.xattrs)
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
        finally:
            os.close(fd)

    def _make_directory(self, directory: int, base: bytes, name: bytes, member: Member) -> None:
        mode = member.mode
        try:
            os.mkdir(base, mode, dir_fd=directory)
        except FileExistsError:
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                if self._no_overwrite:
                    raise Refused(
                        f'cannot overwrite non-directory "{self._path(name)}" with directory'
                        f' "{self._top}"'
                    ) from None
                os.unlink(base, dir_fd=directory)
                os.mkdir(base, mode, dir_fd=directory)
        # All that is said of it goes to what was looked at, whatever has its name by now.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(base, flags, dir_fd=directory)
        try:
            os.fchown(fd, *(self._ids or (member.uid, member.gid)))
            os.fchmod(fd, mode)
            if member.xattrs:
                _set_xattrs(fd, member.xattrs)
        finally:
            os.close(fd)
        self._times[name] = member.mtime_ns

    def _clear(self, directory: int, base: bytes, name: bytes) -> None:
        """What is there gives way, a directory with all in it."""
        if not stat.S_ISDIR(os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(base, dir_fd=directory)
            return
        if self._no_overwrite:
            raise Refused(
                f'cannot overwrite directory "{self._path(name)}" with non-directory "{self._top}"'
            )
        for path in [
            path for path in self._parents if path == name or path.startswith(name + b"/")
        ]:
            os.close(self._parents.pop(path))
        for path in [path for path in self._times if path == name or path.startswith(name + b"/")]:
            del self._times[path]
        shutil.rmtree(os.fsdecode(base), dir_fd=directory)

    def _link(self, directory: int, base: bytes, name: bytes, member: Member) -> None:
        target = posixpath.normpath(b"/".join((os.fsencode(self._top), member.link)))
        top = os.fsencode(self._top)
        if target != top and not target.startswith(top.rstrip(b"/") + b"/"):
            raise Refused(f"invalid hardlink {_quoted(target)} -> {_quoted(member.link)}")
        inside = _clean(member.link)
        above, _, last = inside.rpartition(b"/")
        try:
            source = self._directory
            if above:
                source = openat2(
                    self._directory, os.fsdecode(above), _PARENT, RESOLVE_NO_MAGICLINKS
                )
            try:
                os.link(last, base, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            finally:
                if above:
                    os.close(source)
        except FileExistsError:
            raise
        except OSError as exc:
            shown = target.decode("utf-8", "backslashreplace")
            why = os.strerror(exc.errno or 0).lower()
            raise Refused(f"link {shown} {self._path(name)}: {why}") from None

    def _check_symlink(self, name: bytes, member: Member) -> None:
        if member.link.startswith(b"/"):
            return
        path = posixpath.join(os.fsencode(self._top), name)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.link))
        if not target.startswith(os.fsencode(self._top)):
            raise Refused(f"invalid symlink {_quoted(path)} -> {_quoted(member.link)}")


def _clean(name: bytes) -> bytes:
    """A member's name from the directory on; `..` is left where it leads out."""
    return posixpath.normpath(name.lstrip(b"/") or b".")


def _quoted(text: bytes) -> str:
    return '"' + text.decode("utf-8", "backslashreplace") + '"'


def _set_xattrs(fd: int, xattrs: dict[bytes, bytes]) -> None:
    for name, value in xattrs.items():
        if name.startswith((b"trusted.", b"user.overlay.")):
            continue
        try:
            os.setxattr(fd, name, value)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise


def open_stream(read: compress.Read) -> TarReader:
    """A reader of an archive, perhaps compressed.

    It waits for the first bytes, and imports what it will need: later the root is another.
    """
    start, again = compress.peek(read)
    compression = compress.detect(start)
    if compression is not compress.Compression.NONE:
        compress.prepare()
    return TarReader(compress.decompressed(again, compression))


def unpack(
    reader: TarReader,
    directory: int,
    top: str,
    *,
    no_overwrite: bool,
    ids: tuple[int, int] | None,
) -> None:
    """Extract an archive into a directory; Refused."""
    try:
        Unpacker(directory, top, no_overwrite=no_overwrite, ids=ids).unpack(reader)
    except (TarError, compress.CompressionError) as error:
        raise Refused(str(error)) from None
    except OSError as error:
        where = f" {error.strerror}" if str(error.strerror).startswith("/") else ""
        raise Refused(f"write{where}: {os.strerror(error.errno or 0).lower()}") from None
