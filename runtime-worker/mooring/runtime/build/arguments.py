"""Build arguments: what --build-arg and ARG say, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_BUILT_IN = frozenset(
    name
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (proxy, proxy.lower())
)
"""Allowed without an ARG, and no part of what is cached."""


class Arguments:
    """The arguments of one build; each stage has those it declared itself."""

    def __init__(self, given: Mapping[str, str | None]) -> None:
        self._given = dict(given)
        self._before: dict[str, str | None] = {}
        self._declared: dict[str, str | None] = {}
        self._used: set[str] = set()

    def declare_before(self, name: str, default: str | None) -> None:
        """An ARG before the first FROM."""
        self._before[name] = default
        self._used.add(name)

    def enter_stage(self) -> None:
        """What another stage declared does not count in this one."""
        self._declared = {}

    def declare(self, name: str, default: str | None) -> None:
        """An ARG in a stage; without a default it takes that of one before the first FROM."""
        if default is None:
            default = self._value(name, self._before.get(name)) if name in self._before else None
        self._declared[name] = default
        self._used.add(name)

    def before(self) -> dict[str, str]:
        """What FROM may refer to."""
        return self._values(self._before)

    def allowed(self, environment: Sequence[str]) -> dict[str, str]:
        """What this stage's RUN sees besides its environment, whose variables win."""
        named = {variable.partition("=")[0] for variable in environment}
        declared = dict(self._declared)
        for name in _BUILT_IN & self._given.keys():
            declared.setdefault(name, None)
        return {k: v for k, v in self._values(declared).items() if k not in named}

    def cached(self, allowed: Mapping[str, str]) -> list[str]:
        """Those that are part of what a RUN is, `NAME=value`, sorted."""
        return sorted(
            f"{name}={value}"
            for name, value in allowed.items()
            if name in self._used or name not in _BUILT_IN
        )

    def unused(self) -> list[str]:
        """What was given and nothing declared."""
        return sorted(set(self._given) - self._used - _BUILT_IN)

    def _values(self, declared: Mapping[str, str | None]) -> dict[str, str]:
        values = {name: self._value(name, default) for name, default in declared.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _value(self, name: str, default: str | None) -> str | None:
        given = self._given.get(name)
        return default if given is None else given
