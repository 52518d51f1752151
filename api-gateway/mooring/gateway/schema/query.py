"""Query parameters as Docker reads them: booleans, numbers, times, filters."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime

from mooring.gateway.errors import HttpError
from mooring.gateway.http.request import Request
from mooring.kit.errors import InvalidParameter

_FALSE = frozenset({"", "0", "no", "false", "none"})
_SECONDS = re.compile(r"(-?\d{1,18})(?:\.(\d{1,9})\d*)?\Z", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_MOST_VALUES = 10_000

Filters = dict[str, list[str]]


def flag(request: Request, name: str, default: bool = False) -> bool:
    """A boolean: absent is the default; empty, `0`, `no`, `false`, `none` are false."""
    if name not in request.query:
        return default
    return request.get(name).strip().lower() not in _FALSE


def integer(request: Request, name: str, default: int | None = None) -> int | None:
    """A whole number, or the default if it is absent or empty; InvalidParameter."""
    text = request.get(name)
    if not text:
        return default
    try:
        if not text.isascii() or "_" in text or len(text) > 19:
            raise ValueError
        return int(text)
    except ValueError:
        raise InvalidParameter(
            f'strconv.Atoi: parsing "{text[:40]}": invalid syntax (query parameter {name})'
        ) from None


def size(request: Request, name: str) -> int:
    """Rows or columns of a terminal: a number from 0 to 65535."""
    value = integer(request, name)
    if value is None or not 0 <= value <= 0xFFFF:
        raise InvalidParameter(f"invalid resize {name}: {request.get(name)[:40]!r} is no size")
    return value


def time_ns(request: Request, name: str) -> int | None:
    """Unix seconds with a fraction, as ns; None if absent or empty; InvalidParameter."""
    text = request.get(name)
    if not text:
        return None
    found = _SECONDS.match(text)
    if not found:
        raise InvalidParameter(f'invalid value for "{name}": failed to parse time {text[:60]!r}')
    whole, fraction = found[1], (found[2] or "").ljust(9, "0")
    nanoseconds = int(whole) * 1_000_000_000
    return nanoseconds + (-int(fraction) if whole.startswith("-") else int(fraction))


def filters(request: Request, allowed: frozenset[str]) -> Filters:
    """`filters` in either of its forms; InvalidParameter for what is not among `allowed`."""
    text = request.get("filters")
    if not text:
        return {}
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidParameter("invalid filter: the value is not valid JSON") from None
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidParameter("invalid filter: the value is not a JSON object")
    result: Filters = {}
    for name, values in given.items():
        if isinstance(values, dict):
            # Before API 1.22 a set was written {"a=b": true}.
            values = [value for value, on in values.items() if on]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InvalidParameter(f"invalid filter '{name[:60]}': its value is no list of strings")
        if name not in allowed:
            raise InvalidParameter(f"invalid filter '{name[:60]}'")
        if len(values) > _MOST_VALUES:
            raise HttpError(413, f"invalid filter '{name}': too many values")
        if values:
            result[name] = values
    return result


def until_filter(given: Filters) -> int | None:
    """`until` of a prune as Unix ns: a time, or a duration before now; InvalidParameter."""
    values = given.get("until")
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    text = values[0]
    found = _SECONDS.match(text)
    if found:
        return int(found[1]) * 1_000_000_000 + int((found[2] or "").ljust(9, "0"))
    if _DURATION.fullmatch(text):
        seconds = sum(
            float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text)
        )
        return time.time_ns() - int(seconds * 1e9)
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        words = f'failed to parse value as time or duration: "{text[:60]}"'
        raise InvalidParameter(words) from None
    return int(moment.timestamp() * 1e6) * 1000


def boolean_filter(given: Filters, name: str) -> bool | None:
    """A filter that is true or false; None if it was not given."""
    values = given.get(name)
    if not values:
        return None
    truths = {_truth(name, value) for value in values}
    if len(truths) != 1:
        raise InvalidParameter(f"invalid filter '{name}=[{' '.join(values)[:60]}]'")
    return truths.pop()


def _truth(name: str, text: str) -> bool:
    match text.lower():
        case "1" | "true" | "t":
            return True
        case "0" | "false" | "f":
            return False
    raise InvalidParameter(f"invalid filter '{name}=[{text[:60]}]'")


def has_labels(labels: dict[str, str] | None, wanted: list[str]) -> bool:
    """Whether all of `k` and `k=v` are among the labels."""
    labels = labels or {}
    for text in wanted:
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True
