"""Pure: the label filters of prunes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def passes(labels: Mapping[str, str], wanted: Sequence[str], unwanted: Sequence[str]) -> bool:
    """Whether labels have all of `wanted` and none of `unwanted`: `k`, or `k=v`."""
    return all(_has(labels, text) for text in wanted) and not any(
        _has(labels, text) for text in unwanted
    )


def _has(labels: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
