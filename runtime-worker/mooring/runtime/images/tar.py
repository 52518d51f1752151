"""Reading tar streams: ustar, GNU and PAX, forward only, with a memory that has a bound.

The standard library's tarfile takes some 60 µs for a header, more than creating the file does; this
reader takes a tenth of that and leaves names as the bytes they are. Its errors have the words that
users of other engines know.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
CHUNK = 1 << 20
_SPECIAL_LIMIT = 1 << 20
"""A header that describes another one (long name, PAX records) is refused above this."""
_GLOBAL_LIMIT = 1 << 16
"""Bytes of the PAX records that hold for all that follows: each member is looked at with them."""
_NAME_LIMIT = 4096
"""Bytes of a name or of a link's target; the kernel takes no more."""
_SPARSE_LIMIT = 1 << 16

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
_CONTIGUOUS = ord("7")
_OLD_REGULAR = 0
_GNU_SPARSE, _GNU_LONG_NAME, _GNU_LONG_LINK = b"SLK"
_PAX, _PAX_GLOBAL = b"xg"
_XATTR = b"SCHILY.xattr."
_SPARSE_MAP = b"GNU.sparse.map"

HEADER = struct.Struct("100s8s8s8s12s12s8sB100s8s32s32s8s8s155s12x")
_ZEROS = bytes(BLOCK)
_CHECKSUM_OF_SPACES = 8 * 32


class TarError(ValueError):
    """The stream is no tar archive, or ends too early."""


def invalid_header() -> TarError:
    """What a header that cannot be understood is called."""
    return TarError("archive/tar: invalid tar header")


def unexpected_end() -> TarError:
    """What a stream that stops in the middle is called."""
    return TarError("unexpected EOF")


def _too_long() -> TarError:
    return TarError("archive/tar: header field too long")


class Extent(NamedTuple):
    """A part of a sparse file that has data; bytes."""

    offset: int
    length: int


class Member:
    """One entry of an archive. Its data is read from the reader before the next entry."""

    __slots__ = (
        "gid",
        "link",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "real_size",
        "size",
        "sparse",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name = b""
        self.type = REGULAR
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.mtime_ns = 0
        self.link = b""
        self.major = 0
        self.minor = 0
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: list[Extent] | None = None
        self.real_size = 0


class TarReader:
    """Iterate over the members; between two of them read the data of the first with `data`.

    `read(n)` gives at most n bytes, and none at the end of the stream.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._position = 0
        self._left = 0
        """Bytes of the current member's data that were not read yet."""
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self.next()) is not None:
            yield member

    def next(self) -> Member | None:
        """The next member, or None at the end of the archive; TarError."""
        if self._left or self._padding:
            self._skip_data()
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        while True:
            block = self._block()
            if block is None:
                return None
            member, magic, prefix = _parse(block)
            kind = member.type
            if kind in (_PAX, _PAX_GLOBAL):
                records = _pax_records(self._special(member.size))
                if kind == _PAX_GLOBAL:
                    self._globals.update(records)
                    if sum(len(k) + len(v) for k, v in self._globals.items()) > _GLOBAL_LIMIT:
                        raise _too_long()
                else:
                    pax = records
            elif kind == _GNU_LONG_NAME:
                long_name = _cut(self._special(member.size))
            elif kind == _GNU_LONG_LINK:
                long_link = _cut(self._special(member.size))
            else:
                break
        if prefix and magic[:6] == b"ustar\0" and long_name is None:
            member.name = prefix + b"/" + member.name
        if long_name is not None:
            member.name = long_name
        if long_link is not None:
            member.link = long_link
        if self._globals:
            pax = self._globals | pax
        if pax:
            _apply_pax(member, pax)
        self._finish(member, block, pax)
        if len(member.name) > _NAME_LIMIT or len(member.link) > _NAME_LIMIT:
            raise TarError(f"{member.name[:64].decode('utf-8', 'replace')}: file name too long")
        return member

    def data(self, limit: int = CHUNK) -> memoryview:
        """The next piece of the current member's data, at most limit bytes; empty at its end."""
        if not self._left:
            return memoryview(b"")
        position = self._position
        available = len(self._buffer) - position
        if not available:
            self._fill()
            position, available = 0, len(self._buffer)
            if not available:
                raise unexpected_end()
        count = min(limit, self._left, available)
        self._left -= count
        self._position = position + count
        return memoryview(self._buffer)[position : position + count]

    def write_to(self, fd: int, member: Member) -> None:
        """Write the current member's data into a new file, holes where it has some."""
        if member.sparse is not None:
            os.ftruncate(fd, member.real_size)
            for offset, length in member.sparse:
                end = offset + length
                while offset < end:
                    offset += os.pwrite(fd, self.data(end - offset), offset)
            return
        left = member.size
        while left:
            piece = self.data()
            left -= len(piece)
            written = os.write(fd, piece)
            while written < len(piece):
                written += os.write(fd, piece[written:])

    def drain(self) -> None:
        """Read what follows the end of the archive, so that a digest covers the whole stream."""
        while self._read(CHUNK):
            pass
        self._buffer, self._position = b"", 0

    def _finish(self, member: Member, block: bytes, pax: dict[bytes, bytes]) -> None:
        """What depends on the final values: trailing slashes, how much data follows, holes."""
        kind = member.type
        if kind in (_OLD_REGULAR, _CONTIGUOUS, REGULAR):
            kind = REGULAR if not member.name.endswith(b"/") else DIRECTORY
            member.type = kind
        if kind in (HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO):
            # Some writers give a hard link the size of its file; no data follows.
            member.size = 0
        if not 0 <= member.mtime_ns < 1 << 63:
            member.mtime_ns = 0
        member.real_size = member.size
        self._left = member.size
        self._padding = -member.size % BLOCK
        if kind == _GNU_SPARSE:
            member.type = REGULAR
            self._old_sparse(member, block)
        elif pax and kind == REGULAR:
            self._pax_sparse(member, pax)

    def _old_sparse(self, member: Member, block: bytes) -> None:
        extents = _sparse_entries(block[386:482])
        more = block[482]
        member.real_size = _number(block[483:495])
        while more:
            extension = self._take(BLOCK)
            extents += _sparse_entries(extension[:504])
            more = extension[504]
            _check_sparse(len(extents))
        _set_sparse(member, extents)

    def _pax_sparse(self, member: Member, pax: dict[bytes, bytes]) -> None:
        major = pax.get(b"GNU.sparse.major")
        if major == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            extents = self._sparse_map(member)
        elif _SPARSE_MAP in pax:
            numbers = [_decimal(n) for n in pax[_SPARSE_MAP].split(b",") if n]
            if len(numbers) % 2:
                raise invalid_header()
            extents = list(map(Extent, numbers[::2], numbers[1::2]))
        else:
            return
        member.name = pax.get(b"GNU.sparse.name", member.name)
        size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
        if size is None:
            raise invalid_header()
        member.real_size = _decimal(size)
        _set_sparse(member, extents)

    def _sparse_map(self, member: Member) -> list[Extent]:
        """Format 1.0: the map is in front of the data, decimal lines padded to a block."""
        text = b""

        def line() -> int:
            nonlocal text
            while b"\n" not in text:
                if self._left < BLOCK or len(text) > BLOCK:
                    raise invalid_header()
                text += self._take(BLOCK)
                self._left -= BLOCK
                member.size -= BLOCK
            number, _, text = text.partition(b"\n")
            return _decimal(number)

        count = line()
        _check_sparse(count)
        return [Extent(line(), line()) for _ in range(count)]

    def _block(self) -> bytes | None:
        position = self._position
        block = self._buffer[position : position + BLOCK]
        if len(block) == BLOCK:
            self._position = position + BLOCK
        else:
            self._fill()
            if not self._buffer:
                return None
            block = self._take(BLOCK)
        if block[0] == 0 and block == _ZEROS:
            if not self._buffer[self._position :]:
                self._fill()
            # One block of zeros at the very end does, as other readers have it; else two.
            if self._buffer and self._take(BLOCK) != _ZEROS:
                raise invalid_header()
            return None
        return block

    def _special(self, size: int) -> bytes:
        if size > _SPECIAL_LIMIT:
            raise _too_long()
        data = self._take(size)
        self._take(-size % BLOCK)
        return data

    def _take(self, count: int) -> bytes:
        while len(self._buffer) - self._position < count:
            before = len(self._buffer) - self._position
            self._fill()
            if len(self._buffer) == before:
                raise unexpected_end()
        data = self._buffer[self._position : self._position + count]
        self._position += count
        return data

    def _fill(self) -> None:
        """Read one more piece behind what is left."""
        rest = self._buffer[self._position :]
        piece = self._read(CHUNK)
        self._buffer = rest + piece if rest else piece
        self._position = 0

    def _skip_data(self) -> None:
        while self._left:
            self.data()
        if self._padding:
            padding = self._padding
            self._padding = 0
            # An archive may be cut in the padding of its last member.
            while padding:
                available = len(self._buffer) - self._position
                if not available:
                    self._fill()
                    available = len(self._buffer)
                    if not available:
                        return
                step = min(padding, available)
                self._position += step
                padding -= step


def _parse(block: bytes) -> tuple[Member, bytes, bytes]:
    """A header's member, its magic and its name prefix."""
    fields = HEADER.unpack(block)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, major, minor, prefix = (
        fields
    )
    expected = _number(checksum)
    if expected != sum(block) - sum(checksum) + _CHECKSUM_OF_SPACES:
        signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:])
        if expected != signed + _CHECKSUM_OF_SPACES:
            raise invalid_header()
    member = Member()
    member.type = kind
    member.name = _cut(name)
    member.mode = _number(mode) & 0o7777
    member.uid = _number(uid)
    member.gid = _number(gid)
    member.size = _number(size)
    member.mtime_ns = _number(mtime) * 1_000_000_000
    if member.size < 0:
        raise invalid_header()
    if kind in (HARD_LINK, SYMLINK):
        member.link = _cut(link)
    elif kind in (CHARACTER, BLOCK_DEVICE):
        member.major, member.minor = _number(major), _number(minor)
    return member, magic, _cut(prefix)


def _cut(field: bytes) -> bytes:
    end = field.find(0)
    return field if end < 0 else field[:end]


def _number(field: bytes) -> int:
    """Octal text, or GNU's base-256 numbers."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ~(0x80 << 8 * (len(field) - 1))
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    text = field.strip(b"\0 ")
    if not text:
        return 0
    try:
        return int(_cut(text), 8)
    except ValueError as exc:
        raise invalid_header() from exc


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise invalid_header()
    return int(text)


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """`<length> <key>=<value>\\n`, where the length counts all of it and a value is any bytes."""
    records: dict[bytes, bytes] = {}
    position, end = 0, len(data)
    while position < end:
        space = data.find(b" ", position, position + 12)
        length = _decimal(data[position:space]) if space > 0 else 0
        record = data[space + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if length < 5 or position + length > end or not equals or value[-1:] != b"\n":
            raise invalid_header()
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            # Format 0.0 repeats these two keys; as one value they are format 0.1.
            records[_SPARSE_MAP] = records.get(_SPARSE_MAP, b"") + value[:-1] + b","
        else:
            records[key] = value[:-1]
        position += length
    return records


def _apply_pax(member: Member, pax: dict[bytes, bytes]) -> None:
    for key, value in pax.items():
        match key:
            case b"path":
                member.name = value or member.name
            case b"linkpath":
                member.link = value or member.link
            case b"size":
                member.size = _decimal(value)
            case b"uid":
                member.uid = _decimal(value)
            case b"gid":
                member.gid = _decimal(value)
            case b"mtime":
                member.mtime_ns = _nanoseconds(value)
            case _ if key.startswith(_XATTR) and len(key) > len(_XATTR) and 0 not in key:
                if member.xattrs is None:
                    member.xattrs = {}
                member.xattrs[key[len(_XATTR) :]] = value
    if 0 in member.name or 0 in member.link:
        raise invalid_header()


def _nanoseconds(text: bytes) -> int:
    negative = text.startswith(b"-")
    seconds, _, fraction = text.lstrip(b"-").partition(b".")
    value = _decimal(seconds) * 1_000_000_000
    if fraction:
        value += _decimal(fraction[:9].ljust(9, b"0"))
    return -value if negative else value


def _sparse_entries(table: bytes) -> list[Extent]:
    extents = []
    for start in range(0, len(table) - 23, 24):
        if not table[start]:
            break
        extents.append(
            Extent(_number(table[start : start + 12]), _number(table[start + 12 : start + 24]))
        )
    return extents


def _check_sparse(count: int) -> None:
    if count > _SPARSE_LIMIT:
        raise TarError("archive/tar: sparse file with too many extents")


def _set_sparse(member: Member, extents: list[Extent]) -> None:
    """Extents that overlap, run backwards or do not add up to the data are no valid header."""
    end = 0
    for extent in extents:
        if extent.offset < end or extent.length < 0:
            raise invalid_header()
        end = extent.offset + extent.length
    if end > member.real_size or sum(e.length for e in extents) != member.size:
        raise invalid_header()
    member.sparse = extents
