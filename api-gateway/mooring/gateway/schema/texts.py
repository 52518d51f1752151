"""Times and states in the words that Docker's users read."""

from __future__ import annotations

import time

ZERO_TIME = "0001-01-01T00:00:00Z"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def rfc3339(time_ns: int) -> str:
    """A Unix time in ns as RFC 3339, trailing zeros of the fraction cut; 0 is Go's zero time."""
    if not time_ns:
        return ZERO_TIME
    whole, fraction = divmod(time_ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    if not fraction:
        return text + "Z"
    digits = f"{fraction:09d}".rstrip("0")
    return f"{text}.{digits}Z"


def duration(seconds: int) -> str:
    """How long, roughly: `5 seconds`, `About an hour`, `3 weeks`."""
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < _MINUTE:
        return f"{seconds} seconds"
    minutes = seconds // _MINUTE
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = (seconds + _HOUR // 2) // _HOUR
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"


def next_change(seconds: int) -> int:
    """At which number of seconds the text of `duration` may read differently."""
    if seconds < _MINUTE:
        return seconds + 1
    return (seconds // _MINUTE + 1) * _MINUTE
