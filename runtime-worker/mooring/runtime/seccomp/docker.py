"""Profiles as users write them: Docker's JSON form. Pure."""

from __future__ import annotations

import json
from typing import Any

from mooring.kit.errors import EngineError, NotSupported

from . import model
from .model import Condition, Operator, Profile, Rule

_FIXED = {
    "SCMP_ACT_KILL": model.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": model.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": model.KILL_PROCESS,
    "SCMP_ACT_TRAP": model.TRAP,
    "SCMP_ACT_LOG": model.LOG,
    "SCMP_ACT_ALLOW": model.ALLOW,
}
_ARCHITECTURES = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "x86",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_ARM": "arm",
}
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
"""uname's names as `arches` of a profile has them."""
_HARMLESS_FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"}
"""There is one thread when a filter is set; and since Linux 5.16 speculation is allowed anyway."""
_ARGUMENTS = 6
_MAX_ERRNO = 4095


class _Invalid(ValueError):
    pass


def decode(
    text: str, capabilities: frozenset[str], machine: str, kernel: tuple[int, int]
) -> Profile:
    """A profile for a container with these capabilities; EngineError, NotSupported."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise _Invalid("the profile is no JSON object")
        return _Decoder(capabilities, machine, kernel).profile(value)
    except (ValueError, RecursionError) as exc:
        raise EngineError(f"Decoding seccomp profile failed: {exc}") from exc


class _Decoder:
    def __init__(self, capabilities: frozenset[str], machine: str, kernel: tuple[int, int]) -> None:
        self._capabilities, self._machine, self._kernel = capabilities, machine, kernel

    def profile(self, value: dict[str, Any]) -> Profile:
        if value.get("listenerPath") or value.get("listenerMetadata"):
            raise NotSupported("seccomp: listenerPath is not supported")
        for flag in _list(value, "flags", str):
            if flag not in _HARMLESS_FLAGS:
                raise NotSupported(f"seccomp: flag {flag} is not supported")
        default = _action(value.get("defaultAction"), value.get("defaultErrnoRet"))
        rules: list[Rule] = []
        for call in _list(value, "syscalls", dict):
            rules += self._rules(call, default)
        return Profile(default, self._abis(value), tuple(rules))

    def _abis(self, value: dict[str, Any]) -> tuple[str, ...]:
        plain, mapped = _list(value, "architectures", str), _list(value, "archMap", dict)
        if plain and mapped:
            raise _Invalid(
                "'architectures' and 'archMap' were specified in the seccomp profile, use "
                "either 'architectures' or 'archMap'"
            )
        names = list(plain)
        for entry in mapped:
            if _ARCHITECTURES.get(entry.get("architecture", "")) == self._machine:
                names += _list(entry, "subArchitectures", str)
        # What this machine cannot run needs no rules; itself it can always run.
        abis = [_ARCHITECTURES[name] for name in names if name in _ARCHITECTURES]
        return tuple(dict.fromkeys([self._machine, *abis]))

    def _rules(self, call: dict[str, Any], default: int) -> list[Rule]:
        names = _list(call, "names", str)
        if name := call.get("name"):
            if names:
                raise _Invalid(
                    "'name' and 'names' were specified in the seccomp profile, use either "
                    "'name' or 'names'"
                )
            names = [name]
        result = _action(call.get("action"), call.get("errnoRet"))
        conditions = tuple(_condition(argument) for argument in _list(call, "args", dict))
        if not self._applies(call) or (result == default and conditions):
            return []
        indexes = [condition.argument for condition in conditions]
        if len(set(indexes)) < len(indexes):
            # Several tests of one argument are alternatives, as in every OCI runtime.
            return [Rule(tuple(names), result, (condition,)) for condition in conditions]
        return [Rule(tuple(names), result, conditions)]

    def _applies(self, call: dict[str, Any]) -> bool:
        includes, excludes = call.get("includes") or {}, call.get("excludes") or {}
        if not isinstance(includes, dict) or not isinstance(excludes, dict):
            raise _Invalid("includes and excludes are JSON objects")
        machine = _MACHINES.get(self._machine, self._machine)
        arches = _list(includes, "arches", str)
        if arches and machine not in arches:
            return False
        if machine in _list(excludes, "arches", str):
            return False
        if not set(_list(includes, "caps", str)) <= self._capabilities:
            return False
        if set(_list(excludes, "caps", str)) & self._capabilities:
            return False
        if (least := includes.get("minKernel")) and self._kernel < _version(least):
            return False
        before = excludes.get("minKernel")
        return not (before and self._kernel >= _version(before))


def _action(name: Any, number: Any) -> int:
    if name in _FIXED:
        return _FIXED[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        number = model.EPERM if number is None else number
        if not isinstance(number, int) or not 0 <= number <= _MAX_ERRNO:
            raise _Invalid(f"invalid errnoRet {number!r}")
        return model.errno(number) if name == "SCMP_ACT_ERRNO" else model.TRACE | number
    if name == "SCMP_ACT_NOTIFY":
        raise NotSupported("seccomp: SCMP_ACT_NOTIFY is not supported")
    raise _Invalid(f"invalid seccomp action {name!r}")


def _condition(argument: dict[str, Any]) -> Condition:
    index, value = argument.get("index", 0), argument.get("value", 0)
    second = argument.get("valueTwo", 0)
    for number, limit in ((index, _ARGUMENTS), (value, 1 << 64), (second, 1 << 64)):
        if not isinstance(number, int) or not 0 <= number < limit:
            raise _Invalid(f"invalid number {number!r} in the arguments of a seccomp rule")
    operator = str(argument.get("op")).removeprefix("SCMP_CMP_")
    if operator not in Operator.__members__:
        raise _Invalid(f"invalid seccomp operator {argument.get('op')!r}")
    if operator == Operator.MASKED_EQ:
        return Condition(index, Operator.MASKED_EQ, value, second)
    return Condition(index, Operator(operator), value)


def _version(text: Any) -> tuple[int, int]:
    parts = str(text).split(".")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise _Invalid(f"invalid kernel version {text!r}, expected '<kernel>.<major>'")
    return int(parts[0]), int(parts[1])


def _list(value: dict[str, Any], key: str, kind: type) -> list[Any]:
    found = value.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
        raise _Invalid(f"{key} is no list of {'strings' if kind is str else 'objects'}")
    return found
