"""Extracting one layer: tar members become files below the current root directory.

The caller is a process of its own whose root directory is the layer and whose umask is 0: whatever
a hostile archive names, absolute, through `..` or through a symbolic link, is below that root.
Overlay whiteouts are made from the markers that OCI layers have for what they delete.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field

from .tar import (
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
    invalid_header,
)
from .unpack import Limits

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
"""Other names that begin so were aufs' own bookkeeping; no layer of today has them."""

_OPAQUE_XATTR = b"trusted.overlay.opaque"
_FAULTS = {
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.EISDIR,
    errno.EPERM,
    errno.EXDEV,
    errno.EMLINK,
    errno.EINVAL,
    errno.E2BIG,
    errno.ERANGE,
    errno.EFBIG,
}
"""What only the archive's own names, attributes and sizes can cause here."""

_NAMES = 256 << 20
"""Bytes of the names of all directories, which are kept to the end."""
_IMPLIED = 16 << 20
"""Bytes of the names of those without an entry of their own, which are told to others."""
_SHOWN = 256
"""Characters of a name that an error quotes."""

_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class LimitExceeded(TarError):
    """The archive holds more than a layer may; the message names the setting."""


_UNLIMITED = Limits()


def _too_much(limits: Limits, result: Extracted) -> LimitExceeded:
    if result.size > limits.size:
        return LimitExceeded(
            f"a layer holds more than {limits.size} bytes (setting image_max_layer_size)"
        )
    return LimitExceeded(
        f"a layer holds more than {limits.files} files (setting image_max_layer_files)"
    )


@dataclass(slots=True)
class Extracted:
    """What came out of an archive. Bytes; `implied` are parents that had no entry of their own."""

    size: int = 0
    entries: int = 0
    implied: list[bytes] = field(default_factory=list)


def extract(reader: TarReader, limits: Limits = _UNLIMITED) -> Extracted:
    """Extract every member into the root directory; TarError for what is no valid layer.

    LimitExceeded for one that is larger than the limits allow.
    """
    extraction = _Extraction(reader)
    result = extraction.result
    for member in reader:
        result.size += member.real_size
        if result.size > limits.size or result.entries >= limits.files:
            raise _too_much(limits, result)
        extraction.add(member)
    reader.drain()
    extraction.finish()
    return extraction.result


class _Extraction:
    def __init__(self, reader: TarReader) -> None:
        self.result = Extracted()
        self._reader = reader
        self._implied: dict[bytes, None] = {}
        self._directories: dict[bytes, int] = {}
        """Modification times in ns, set at the end: every entry made in one changes it."""
        self._names_size = self._implied_size = 0
        self._whiteouts: set[bytes] = set()
        self._group_inherited = False

    def add(self, member: Member) -> None:
        """Make what one member describes."""
        name = _clean(member.name)
        self.result.entries += 1
        if not name:
            if member.type == DIRECTORY:
                self._directory(b".", member)
            return
        base = name.rpartition(b"/")[2]
        try:
            if base.startswith(_WHITEOUT):
                self._whiteout(name, base)
                return
            self._place(name, member)
            if self._whiteouts:
                self._uncover(name, member)
        except OSError as exc:
            raise _refused(name, member, exc) from exc
        except OverflowError as exc:
            # An owner, device or time that the kernel has no room for.
            raise invalid_header() from exc

    def finish(self) -> None:
        """Set what later entries would have changed again."""
        for name in reversed(self._directories):
            time = self._directories[name]
            with suppress(FileNotFoundError, NotADirectoryError):
                os.utime(name, ns=(time, time), follow_symlinks=False)
        # The root directory, too: an overlay shows that of its uppermost layer.
        self._implied = {b".": None, **self._implied}
        self.result.implied = [n for n in self._implied if n not in self._directories]

    def _place(self, name: bytes, member: Member) -> None:
        """Make it, whatever is, or is not yet, where it goes."""
        try:
            self._make(name, member)
        except FileNotFoundError:
            if member.type == HARD_LINK and not self._lacks_parent(name):
                raise
            self._parents(name)
            self._make(name, member)
        except FileExistsError:
            self._clear(name)
            self._make(name, member)

    def _make(self, name: bytes, member: Member) -> None:
        kind = member.type
        if kind == REGULAR:
            self._regular(name, member)
        elif kind == DIRECTORY:
            self._directory(name, member)
        elif kind == SYMLINK:
            os.symlink(member.link, name)
            self._attributes(name, member)
        elif kind == HARD_LINK:
            target = _clean(member.link)
            if target == name:
                return
            os.link(target, name, follow_symlinks=False)
        elif kind in (CHARACTER, BLOCK_DEVICE):
            file_type = stat.S_IFCHR if kind == CHARACTER else stat.S_IFBLK
            os.mknod(name, file_type | 0o600, os.makedev(member.major, member.minor))
            self._attributes(name, member)
        elif kind == FIFO:
            os.mkfifo(name, 0o600)
            self._attributes(name, member)
        else:
            raise TarError(
                f"unhandled tar header type {kind} of {_text(name)}: not a file of a layer"
            )

    def _regular(self, name: bytes, member: Member) -> None:
        mode = member.mode
        fd = os.open(name, _CREATE, mode)
        try:
            self._reader.write_to(fd, member)
            if member.uid or member.gid or self._group_inherited:
                os.fchown(fd, member.uid, member.gid)
            if mode & 0o6000:
                # Writing and changing the owner take these bits away.
                os.fchmod(fd, mode)
            if member.xattrs:
                _set_xattrs(fd, member.xattrs)
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, name: bytes, member: Member) -> None:
        try:
            os.mkdir(name, member.mode)
            fresh = True
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name).st_mode):
                raise
            fresh = False
        if not fresh or member.uid or member.gid or self._group_inherited:
            os.chown(name, member.uid, member.gid)
        if not fresh or member.mode & 0o7000:
            # mkdir(2) leaves the upper bits out.
            os.chmod(name, member.mode)
        if member.mode & stat.S_ISGID:
            self._group_inherited = True
        if member.xattrs:
            _set_xattrs(name, member.xattrs)
        if name not in self._directories:
            self._named(name)
        self._directories[name] = member.mtime_ns

    def _attributes(self, name: bytes, member: Member) -> None:
        """Owner, mode, extended attributes and time of what has no descriptor to set them on."""
        if member.uid or member.gid or self._group_inherited:
            os.chown(name, member.uid, member.gid, follow_symlinks=False)
        if member.type != SYMLINK:
            os.chmod(name, member.mode)
        if member.xattrs:
            _set_xattrs(name, member.xattrs)
        time = member.mtime_ns
        os.utime(name, ns=(time, time), follow_symlinks=False)

    def _lacks_parent(self, name: bytes) -> bool:
        parent = name.rpartition(b"/")[0]
        return bool(parent) and not os.path.isdir(parent)

    def _parents(self, name: bytes) -> None:
        """Make the directories above name that the archive has no entry for (yet)."""
        position = name.find(b"/")
        while position > 0:
            parent = name[:position]
            try:
                os.mkdir(parent, 0o755)
            except FileExistsError:
                pass
            else:
                self._imply(parent)
            position = name.find(b"/", position + 1)

    def _imply(self, parent: bytes) -> None:
        """A directory was made that the archive has no entry for (yet): it counts like one."""
        self.result.entries += 1
        self._implied[parent] = None
        self._implied_size += len(parent)
        self._named(parent)

    def _named(self, name: bytes) -> None:
        self._names_size += len(name)
        if self._names_size > _NAMES or self._implied_size > _IMPLIED:
            raise LimitExceeded("the names of a layer's directories are too long together")

    def _clear(self, name: bytes) -> None:
        """A later entry of the same name takes the place of an earlier one."""
        if not stat.S_ISDIR(os.lstat(name).st_mode):
            os.unlink(name)
            return
        for removed in _remove_tree(name):
            self._directories.pop(removed, None)
            self._implied.pop(removed, None)

    def _whiteout(self, name: bytes, base: bytes) -> None:
        directory = name[: -len(base)]
        if base == _OPAQUE:
            self._opaque(directory or b".")
            return
        if base.startswith(_AUFS):
            return
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise TarError(f"invalid whiteout name: {_text(name)}")
        target = directory + hidden
        try:
            if stat.S_ISDIR(os.lstat(target).st_mode):
                # Deleted below and made anew in this layer.
                self._opaque(target)
            return
        except FileNotFoundError:
            pass
        self._parents(name)
        os.mknod(target, stat.S_IFCHR | 0o000, os.makedev(0, 0))
        self._whiteouts.add(target)

    def _opaque(self, directory: bytes) -> None:
        try:
            os.setxattr(directory, _OPAQUE_XATTR, b"y", follow_symlinks=False)
        except FileNotFoundError:
            self._parents(directory + b"/")
            os.setxattr(directory, _OPAQUE_XATTR, b"y", follow_symlinks=False)

    def _uncover(self, name: bytes, member: Member) -> None:
        """A directory that took the place of a whiteout shows nothing of the layers below."""
        if name in self._whiteouts:
            self._whiteouts.discard(name)
            if member.type == DIRECTORY:
                self._opaque(name)


def _clean(name: bytes) -> bytes:
    """A member's name without a leading slash, `.` and `..`; empty for the root itself."""
    if name and name[0] != 0x2F and b"./" not in name and b"//" not in name:
        if name[-1] == 0x2F:
            name = name[:-1]
        if name != b"." and name != b".." and not name.endswith((b"/.", b"/..")):
            return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _set_xattrs(target: int | bytes, xattrs: dict[bytes, bytes]) -> None:
    for name, value in xattrs.items():
        # An image must not steer overlayfs: a redirect could show another layer's files.
        if name.startswith((b"trusted.overlay.", b"user.overlay.")):
            continue
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as exc:
            # A file system without them, or an attribute that this kind of file cannot have.
            unsuitable = exc.errno == errno.EPERM and name.startswith(b"user.")
            if exc.errno != errno.EOPNOTSUPP and not unsuitable:
                raise


def _remove_tree(name: bytes) -> list[bytes]:
    """Without recursion: an archive decides how deep this goes. The directories that went."""
    pending, directories = [name], []
    while pending:
        directory = pending.pop()
        directories.append(directory)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    os.unlink(entry.path)
    for directory in reversed(directories):
        os.rmdir(directory)
    return directories


def _refused(name: bytes, member: Member, exc: OSError) -> Exception:
    """An archive's own fault is its error; a full disk and the like stay what they are."""
    if exc.errno not in _FAULTS:
        return exc
    if member.type == HARD_LINK:
        return TarError(
            f"link /{_text(_clean(member.link))} /{_text(name)}: {os.strerror(exc.errno).lower()}"
        )
    return TarError(f"cannot extract /{_text(name)}: {os.strerror(exc.errno).lower()}")


def _text(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
