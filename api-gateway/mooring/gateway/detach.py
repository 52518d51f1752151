"""Detach keys: the sequence that ends an attachment and leaves the process alone."""

from __future__ import annotations

from mooring.kit.errors import InvalidParameter

DEFAULT = b"\x10\x11"
"""ctrl-p ctrl-q."""

_SPECIAL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse(text: str) -> bytes:
    """`ctrl-x,a` as bytes; the default for an empty text; InvalidParameter."""
    if not text:
        return DEFAULT
    return bytes(_key(part) for part in text.split(","))


def _key(part: str) -> int:
    if len(part) == 1 and ord(part) < 128:
        return ord(part)
    head, _, key = part.rpartition("-")
    if head == "ctrl" and len(key) == 1:
        if "a" <= key <= "z":
            return ord(key) - ord("a") + 1
        if key in _SPECIAL:
            return _SPECIAL[key]
    raise InvalidParameter(f"Invalid detach keys ({part}) provided")


class Scanner:
    """Looks for the keys in input that arrives in pieces; holds back what may be their start."""

    def __init__(self, keys: bytes, matched: int = 0) -> None:
        self._keys = keys
        self._matched = matched

    @property
    def matched(self) -> int:
        """How many of the keys the input ends with."""
        return self._matched

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on of data (with what was held back before it), and whether it detaches."""
        out = bytearray()
        keys = self._keys
        for byte in data:
            if byte == keys[self._matched]:
                self._matched += 1
                if self._matched == len(keys):
                    self._matched = 0
                    return bytes(out), True
                continue
            if self._matched:
                out += keys[: self._matched]
                self._matched = 0
                if byte == keys[0]:
                    self._matched = 1
                    continue
            out.append(byte)
        return bytes(out), False
