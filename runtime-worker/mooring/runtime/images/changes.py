"""Dockerfile instructions as changes to an image's config (`docker import --change`). Pure."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable
from typing import Any

Config = dict[str, Any]
"""`config` of an OCI image configuration, with Docker's keys."""

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 6e10, "h": 3.6e12}
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_SHELL = ["/bin/sh", "-c"]


class InvalidChange(ValueError):
    """An instruction that cannot be applied; the message is for the user."""


def apply(config: Config, changes: Iterable[str]) -> Config:
    """A copy of config with the instructions applied in their order; InvalidChange."""
    changed = json.loads(json.dumps(config))
    command_given = False
    for change in changes:
        for line in _lines(change):
            name, _, rest = line.partition(" ")
            instruction = _INSTRUCTIONS.get(name.upper())
            command_given |= name.upper() == "CMD"
            if name.upper() == "ENTRYPOINT" and not command_given:
                # It makes the old command meaningless, unless CMD came with these changes.
                changed.pop("Cmd", None)
            if instruction is None:
                raise InvalidChange(f"{name.lower()} is not a valid change command")
            if not rest.strip():
                raise InvalidChange(f"{name.upper()} requires at least one argument")
            instruction(changed, rest.strip())
    return dict(changed)


def _lines(change: str) -> list[str]:
    joined = re.sub(r"\\[ \t]*\n", " ", change)
    lines = (" ".join(line.strip().split(None, 1)) for line in joined.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _words(text: str) -> list[str]:
    """Words as a Dockerfile has them: quotes group, a backslash escapes."""
    words: list[str] = []
    word, quote, started = "", "", False
    characters = iter(text)
    for c in characters:
        if c == "\\" and quote != "'":
            word += next(characters, "")
            started = True
        elif quote:
            quote, word = ("", word) if c == quote else (quote, word + c)
        elif c in "'\"":
            quote, started = c, True
        elif c.isspace():
            if started:
                words.append(word)
            word, started = "", False
        else:
            word, started = word + c, True
    if quote:
        raise InvalidChange(f"unexpected end of statement while looking for matching {quote}")
    return [*words, word] if started else words


def _json_words(text: str) -> list[str] | None:
    """The exec form, a JSON array of strings; None if it is none."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if all(isinstance(word, str) for word in value) else None


def _command(config: Config, text: str) -> list[str]:
    words = _json_words(text)
    return words if words is not None else [*(config.get("Shell") or _SHELL), text]


def _cmd(config: Config, text: str) -> None:
    config["Cmd"] = _command(config, text)


def _entrypoint(config: Config, text: str) -> None:
    config["Entrypoint"] = _command(config, text)


def _pairs(text: str, name: str) -> list[tuple[str, str]]:
    words = _words(text)
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value:
            raise InvalidChange(f"{name} must have two arguments")
        return [(key, value.strip())]
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidChange(
                f"Syntax error - can't find = in {word!r}. Must be of the form: name=value"
            )
        if not key:
            raise InvalidChange(f"{name} names can not be blank")
        pairs.append((key, value))
    return pairs


def _env(config: Config, text: str) -> None:
    set_variables(config, _pairs(text, "ENV"))


def set_variables(config: Config, pairs: Iterable[tuple[str, str]]) -> None:
    """Set environment variables, each where an earlier value of it is."""
    environment: list[str] = list(config.get("Env") or [])
    for key, value in pairs:
        entry = f"{key}={value}"
        for i, old in enumerate(environment):
            if old.partition("=")[0] == key:
                environment[i] = entry
                break
        else:
            environment.append(entry)
    config["Env"] = environment


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text, "LABEL"))}


def _expose(config: Config, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in _words(text):
        match = _PORT.fullmatch(word)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if not match or not 0 < first <= last <= 65535:
            raise InvalidChange(f"invalid containerPort: {word}")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    config["ExposedPorts"] = ports


def _user(config: Config, text: str) -> None:
    words = _words(text)
    if len(words) != 1:
        raise InvalidChange("USER requires exactly one argument")
    config["User"] = words[0]


def _workdir(config: Config, text: str) -> None:
    words = _words(text)
    if len(words) != 1:
        raise InvalidChange("WORKDIR requires exactly one argument")
    config["WorkingDir"] = posixpath.normpath(
        posixpath.join("/", config.get("WorkingDir") or "/", words[0])
    )


def _volume(config: Config, text: str) -> None:
    json_words = _json_words(text)
    paths = _words(text) if json_words is None else json_words
    if not all(path.strip() for path in paths):
        raise InvalidChange("VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path.strip(): {} for path in paths}}


def _stop_signal(config: Config, text: str) -> None:
    words = _words(text)
    if len(words) != 1:
        raise InvalidChange("STOPSIGNAL requires exactly one argument")
    config["StopSignal"] = words[0]


def _shell(config: Config, text: str) -> None:
    words = _json_words(text)
    if not words:
        raise InvalidChange(f"SHELL requires the arguments to be in JSON form: {text}")
    config["Shell"] = words


def _on_build(config: Config, text: str) -> None:
    name = text.partition(" ")[0].upper()
    if name == "ONBUILD":
        raise InvalidChange("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if name in ("MAINTAINER", "FROM"):
        raise InvalidChange(f"{name} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _healthcheck(config: Config, text: str) -> None:
    check: dict[str, Any] = {}
    flags = ""
    while match := re.match(r"--([a-z-]+)=(\S+)\s*", text):
        flags, text = match[1], text[match.end() :]
        if flags == "retries":
            check["Retries"] = _retries(match[2])
        elif flags in _HEALTH_FLAGS:
            check[_HEALTH_FLAGS[flags]] = _nanoseconds(flags, match[2])
        else:
            raise InvalidChange(f"unknown flag: {flags}")
    kind, _, command = text.partition(" ")
    if kind.upper() == "NONE":
        if command.strip():
            raise InvalidChange("HEALTHCHECK NONE takes no arguments")
        check["Test"] = ["NONE"]
    elif kind.upper() == "CMD":
        if not command.strip():
            raise InvalidChange("missing command after HEALTHCHECK CMD")
        words = _json_words(command.strip())
        check["Test"] = ["CMD-SHELL", command.strip()] if words is None else ["CMD", *words]
    else:
        raise InvalidChange(f'unknown type "{kind}" in HEALTHCHECK (try CMD)')
    config["Healthcheck"] = check


_HEALTH_FLAGS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}


def _retries(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise InvalidChange(f"--retries must be at least 1 (not {text})")
    return int(text)


def _nanoseconds(flag: str, text: str) -> int:
    parts = _DURATION.findall(text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise InvalidChange(f'time: invalid duration "{text}"')
    duration = sum(int(float(number) * _UNITS[unit]) for number, unit in parts)
    if 0 < duration < 1_000_000:
        raise InvalidChange(f"Interval {flag!r} cannot be less than 1ms")
    return duration


_INSTRUCTIONS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
