"""What instructions do to an image's config, and how the history tells of it. Pure."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from mooring.runtime.images.changes import set_variables

from .dockerfile.errors import StepError
from .dockerfile.instructions import Command, Healthcheck, OnBuild, Pairs, Program, Words
from .dockerfile.words import expand, expand_words

Config = dict[str, Any]
"""`config` of an OCI image configuration, with Docker's keys; no key is empty."""

SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/([a-zA-Z]+))?")
_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


def shell_of(config: Config) -> list[str]:
    """What turns a line into a program."""
    return list(config.get("Shell") or SHELL)


def environment(config: Config, arguments: Mapping[str, str]) -> dict[str, str]:
    """The variables that instructions refer to."""
    variables = dict(arguments)
    for entry in config.get("Env") or []:
        name, _, value = entry.partition("=")
        variables[name] = value
    return variables


def program(command: Program, config: Config) -> list[str]:
    """The words that a RUN, CMD or ENTRYPOINT executes."""
    return [*shell_of(config), *command.words] if command.shell else list(command.words)


class Step:
    """One instruction that changes nothing but the config."""

    def __init__(self, config: Config, variables: Mapping[str, str], escape: str) -> None:
        self.config: Config = json.loads(json.dumps(config))
        self._variables = variables
        self._escape = escape

    def apply(self, command: Command, *, cmd_set: bool) -> str:
        """Change the config; what the history says. StepError.

        cmd_set: a CMD came before in this stage, so ENTRYPOINT leaves it alone.
        """
        match command:
            case Pairs(name="ENV"):
                return self._env(command)
            case Pairs():
                return self._label(command)
            case Words(name="EXPOSE"):
                return self._expose(command)
            case Words(name="VOLUME"):
                return self._volume(command)
            case Words(name="USER"):
                self.config["User"] = user = self._expanded(command.words[0])
                return f"USER {user}"
            case Words(name="STOPSIGNAL"):
                return self._stop_signal(command)
            case Words(name="SHELL"):
                self.config["Shell"] = list(command.words)
                return f"SHELL [{' '.join(command.words)}]"
            case Words(name="MAINTAINER"):
                return f"MAINTAINER {command.words[0]}"
            case Program(name="CMD"):
                self.config["Cmd"] = program(command, self.config)
                return f"CMD {quoted(self.config['Cmd'])}"
            case Program(name="ENTRYPOINT"):
                return self._entrypoint(command, cmd_set=cmd_set)
            case Healthcheck():
                return self._healthcheck(command)
            case OnBuild():
                known = self.config.get("OnBuild") or []
                self.config["OnBuild"] = [*known, command.expression]
                return f"ONBUILD {command.expression}"
        raise StepError(f"unsupported command: {command.name}")

    def workdir(self, command: Words) -> str:
        """Change the working directory; its path."""
        path = self._expanded(command.words[0])
        if not path:
            raise StepError("cannot normalize nothing")
        joined = posixpath.join("/", self.config.get("WorkingDir") or "/", path)
        # POSIX lets two slashes at the beginning stand for something else; nobody means that.
        path = "/" + posixpath.normpath(joined).lstrip("/")
        self.config["WorkingDir"] = path
        return path

    def _expanded(self, word: str) -> str:
        return expand(word, self._variables, self._escape)

    def _pairs(self, command: Pairs) -> list[tuple[str, str]]:
        if command.literal:
            return list(command.pairs)
        pairs = [(self._expanded(key), self._expanded(value)) for key, value in command.pairs]
        if not all(key for key, _ in pairs):
            raise StepError(f"{command.name} names can not be blank")
        return pairs

    def _env(self, command: Pairs) -> str:
        pairs = self._pairs(command)
        set_variables(self.config, pairs)
        return " ".join(["ENV", *(f"{key}={value}" for key, value in pairs)])

    def _label(self, command: Pairs) -> str:
        pairs = self._pairs(command)
        self.config["Labels"] = {**(self.config.get("Labels") or {}), **dict(pairs)}
        return " ".join(["LABEL", *(f"{key}={value}" for key, value in pairs)])

    def _expose(self, command: Words) -> str:
        ports: list[str] = []
        for word in command.words:
            for text in expand_words(word, self._variables, self._escape):
                ports += _ports(text)
        self.config["ExposedPorts"] = {
            **(self.config.get("ExposedPorts") or {}),
            **{port: {} for port in ports},
        }
        shown = sorted(port.removesuffix("/tcp") for port in ports)
        return " ".join(["EXPOSE", *shown])

    def _volume(self, command: Words) -> str:
        paths = [self._expanded(word).strip() for word in command.words]
        if not all(paths):
            raise StepError("VOLUME specified can not be an empty string")
        known = self.config.get("Volumes") or {}
        self.config["Volumes"] = {**known, **{path: {} for path in paths}}
        return f"VOLUME [{' '.join(paths)}]"

    def _stop_signal(self, command: Words) -> str:
        text = self._expanded(command.words[0])
        if not _is_signal(text):
            raise StepError(f"Invalid signal: {text}")
        self.config["StopSignal"] = text
        return f"STOPSIGNAL {text}"

    def _entrypoint(self, command: Program, *, cmd_set: bool) -> str:
        words = program(command, self.config) if command.words else []
        if words:
            self.config["Entrypoint"] = words
        else:
            self.config.pop("Entrypoint", None)
        if not cmd_set:
            # What belonged to the old entry point means nothing to the new one.
            self.config.pop("Cmd", None)
        return f"ENTRYPOINT {quoted(words)}"

    def _healthcheck(self, command: Healthcheck) -> str:
        self.config["Healthcheck"] = check = command.config
        times = [_go_duration(check.get(k, 0)) for k in ("Interval", "Timeout", "StartPeriod")]
        shown = " ".join(f'"{text}"' for text in times)
        retries = check.get("Retries", 0)
        return f"HEALTHCHECK &{{{quoted(check['Test'])} {shown} '{_go_rune(retries)}'}}"


def quoted(words: Sequence[str]) -> str:
    """A list as Go prints it with %q."""
    return f"[{' '.join(json.dumps(word, ensure_ascii=False) for word in words)}]"


def argument_text(arguments: Sequence[tuple[str, str | None]]) -> str:
    """How the history tells of an ARG."""
    shown = [name if value is None else f"{name}={value}" for name, value in arguments]
    return " ".join(["ARG", *shown])


def nop(config: Config, text: str) -> list[str]:
    """The command that stands for an instruction which runs nothing."""
    return [*shell_of(config), "#(nop) ", text]


def build_key(config: Config, command: Sequence[str]) -> str:
    """What a step is, for whoever has the same image below: its config and its command."""
    content = {key: value for key, value in config.items() if value}
    content["Cmd"] = list(command)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _ports(text: str) -> list[str]:
    # `127.0.0.1:80:80` and the like: the container's port counts.
    match = _PORT.fullmatch(text.rpartition(":")[2])
    if match is None:
        raise StepError(f"Invalid containerPort: {text}")
    protocol = (match[3] or "tcp").lower()
    if protocol not in _PROTOCOLS:
        raise StepError(f"Invalid proto: {match[3]}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 0 < first <= last <= 65535:
        raise StepError(f"Invalid containerPort: {text.partition('/')[0]}")
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _is_signal(text: str) -> bool:
    if text.isdecimal():
        return 0 < int(text) <= 64
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    realtime = re.fullmatch(r"SIGRT(?:MIN(?:\+\d+)?|MAX(?:-\d+)?)", name)
    return realtime is not None or name in signal.Signals.__members__


def _go_duration(nanoseconds: int) -> str:
    """As Go prints a duration."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 1_000_000_000:
        return f"{_trimmed(nanoseconds / 1e6)}ms"
    seconds, hours, minutes = nanoseconds / 1e9, 0.0, 0.0
    if seconds >= 3600:
        hours, seconds = divmod(seconds, 3600)
    if seconds >= 60 or hours:
        minutes, seconds = divmod(seconds, 60)
    text = f"{int(hours)}h" if hours else ""
    text += f"{int(minutes)}m" if minutes or hours else ""
    return f"{text}{_trimmed(seconds)}s"


def _trimmed(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")


def _go_rune(number: int) -> str:
    escapes = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}
    if number in escapes:
        return escapes[number]
    return f"\\x{number:02x}" if number < 0x20 or number == 0x7F else chr(number)
