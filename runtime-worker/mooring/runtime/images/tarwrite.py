"""Writing tar headers: ustar, with PAX records where it has no room. Pure.

A value that ustar can hold is written so: most entries are one block of 512 bytes. Times keep
their nanoseconds, which takes a PAX record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .tar import BLOCK, HEADER, Extent

_OCTAL_7 = 0o7777777
_OCTAL_11 = 0o77777777777
_NAME = 100
_PREFIX = 155
_PAX = ord("x")
END = bytes(2 * BLOCK)
"""Of an archive."""


def header(
    name: bytes,
    kind: int,
    *,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime_ns: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    records: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """The header of one entry, size bytes of data (and `padding`) follow it.

    kind is one of tar.py's; records are further PAX records. A directory's name ends in a slash.
    """
    pax = [*records]
    short, prefix = name, b""
    if len(name) > _NAME and (split := _split(name)) is not None:
        prefix, short = split
    elif len(name) > _NAME:
        pax.append((b"path", name))
        short = name[:_NAME]
    if len(link) > _NAME:
        pax.append((b"linkpath", link))
        link = link[:_NAME]
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= seconds <= _OCTAL_11:
        pax.append((b"mtime", _decimal_time(mtime_ns)))
        seconds = min(max(seconds, 0), _OCTAL_11)
    for key, value, most in (
        (b"uid", uid, _OCTAL_7),
        (b"gid", gid, _OCTAL_7),
        (b"size", size, _OCTAL_11),
    ):
        if value > most:
            pax.append((key, b"%d" % value))
    block = _block(
        short,
        kind,
        mode,
        uid if uid <= _OCTAL_7 else 0,
        gid if gid <= _OCTAL_7 else 0,
        size if size <= _OCTAL_11 else 0,
        seconds,
        link,
        device,
        prefix,
    )
    if not pax:
        return block
    data = b"".join(_record(key, value) for key, value in pax)
    extended = _block(
        b"PaxHeaders/" + short.rstrip(b"/")[-80:], _PAX, 0o644, 0, 0, len(data), 0, b"", (0, 0), b""
    )
    return b"".join((extended, data, padding(len(data)), block))


def padding(size: int) -> bytes:
    """What follows that many bytes of data."""
    return bytes(-size % BLOCK)


def sparse(extents: Sequence[Extent], real_size: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """GNU's format 1.0 of a sparse file: the map in front of its data, and its PAX records."""
    lines = [b"%d\n" % len(extents)]
    lines += [b"%d\n%d\n" % extent for extent in extents]
    text = b"".join(lines)
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"%d" % real_size),
    ]
    return text + padding(len(text)), records


def _block(
    name: bytes,
    kind: int,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes,
    device: tuple[int, int],
    prefix: bytes,
) -> bytes:
    block = HEADER.pack(
        name,
        b"%07o" % mode,
        b"%07o" % uid,
        b"%07o" % gid,
        b"%011o" % size,
        b"%011o" % seconds,
        b" " * 8,
        kind,
        link,
        b"ustar\00000",
        b"",
        b"",
        b"%07o" % device[0],
        b"%07o" % device[1],
        prefix,
    )
    return b"%b%06o\0 %b" % (block[:148], sum(block), block[156:])


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """A long name as prefix and name, at a slash; None if there is no such place."""
    cut = name.rfind(b"/", max(0, len(name) - _NAME - 1), min(len(name) - 1, _PREFIX + 1))
    if cut <= 0 or len(name) - cut - 1 > _NAME or cut > _PREFIX:
        return None
    return name[:cut], name[cut + 1 :]


def _decimal_time(time_ns: int) -> bytes:
    sign = b"-" if time_ns < 0 else b""
    seconds, nanoseconds = divmod(abs(time_ns), 1_000_000_000)
    fraction = b".%09d" % nanoseconds if nanoseconds else b""
    return sign + b"%d" % seconds + fraction.rstrip(b"0")


def _record(key: bytes, value: bytes) -> bytes:
    """`<length> <key>=<value>\\n`; the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if rest + len(str(length)) != length:
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
