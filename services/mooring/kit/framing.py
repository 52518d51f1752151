"""The binary prefix of stream messages, and the timing both directions keep. See streams.py.

data messages      <kind> <offset of the first byte> payload
control messages   <kind> <credit: the offset the writer may go up to> <received: 8 bytes>
"""

from __future__ import annotations

import struct

import msgpack

from .errors import KINDS, EngineError

CHUNK = 128 << 10
"""Bytes of payload in one message."""
WINDOW = 1 << 20
"""Bytes in flight, unless the reader says otherwise."""

DATA = 1
END = 2
"""The stream is over; payload: msgpack {reason, error?}, or the result of an upload."""
PING = 3
"""Answered at the reply subject by the same kind, with where the other side stands."""
CREDIT = 4
CLOSE = 5
"""The reader wants no more, or the writer gives up."""

MOVED = "moved"
"""The reason of a writer that is being stopped: its successor goes on."""

SILENCE = 2.0
"""Seconds without a message after which a peer is asked whether it is there."""
GONE = 30.0
"""Seconds without a sign of the peer after which a stream is given up."""

prefix = struct.Struct("<BxxxIQ")
"""kind, reserved, offset."""
position = struct.Struct("<Q")


def pack(kind: int, offset: int, payload: bytes = b"") -> bytes:
    """One message."""
    return prefix.pack(kind, 0, offset) + payload


def pack_end(reason: str, error: EngineError | None) -> bytes:
    """The payload of END."""
    if error is None:
        return bytes(msgpack.packb({"reason": reason}))
    return bytes(msgpack.packb({"reason": error.message, "error": error.kind}))


def unpack_end(payload: bytes) -> tuple[str, EngineError | None]:
    """The reason ("end", MOVED, or a text), and the error if it was one."""
    content = msgpack.unpackb(payload)
    reason = str(content["reason"])
    if "error" in content:
        return reason, KINDS.get(content["error"], EngineError)(reason)
    return reason, None
