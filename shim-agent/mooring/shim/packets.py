"""Packets of the shim's sockets: one JSON object, then optionally a newline and raw bytes.

Importing `json` would bring `re` and `enum` into every shim (1.2 MB in the launcher); its C parts
alone do the same work.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class _Options:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"not JSON: {name}")


def _refuse(value: object) -> object:
    raise TypeError(f"not JSON: {type(value).__name__}")


_scan = make_scanner(_Options())  # type: ignore[arg-type]
_encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)


def parse(data: bytes) -> Any:
    """The value of a JSON text; ValueError."""
    text = data.decode().strip()
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"not JSON at character {stop.value}") from None
    except SystemError:
        # The C scanner wanted json.decoder's exception, which is not imported here.
        raise ValueError("not JSON") from None
    if end != len(text):
        raise ValueError(f"not JSON at character {end}")
    return value


def dump(value: object) -> bytes:
    """JSON without blanks, ASCII only."""
    return "".join(_encode(value, 0)).encode()


def split(packet: bytes) -> tuple[dict[str, Any], bytes]:
    """The object and the raw bytes of a packet; ValueError."""
    head, _, raw = packet.partition(b"\n")
    value = parse(head)
    if not isinstance(value, dict):
        raise ValueError("a packet is a JSON object")
    return value, raw


def join(head: Mapping[str, object], raw: bytes = b"") -> bytes:
    """A packet."""
    return dump(head) + b"\n" + raw if raw else dump(head)
