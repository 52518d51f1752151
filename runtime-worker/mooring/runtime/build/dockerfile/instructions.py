"""Instructions as typed values, checked one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .errors import DockerfileError
from .parser import Heredoc, Node

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_DURATION = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+|[+-]?0")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 6e10, "h": 3.6e12}

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Command:
    """What all have: the instruction's name, its text and the line it begins on."""

    name: str
    original: str
    line: int


@dataclass(frozen=True, slots=True)
class From(Command):
    """FROM: the beginning of a stage."""

    base: str
    platform: str
    alias: str


@dataclass(frozen=True, slots=True)
class Arg(Command):
    """ARG: names, each with its default if it has one."""

    arguments: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Pairs(Command):
    """ENV, LABEL. literal: the quotes were taken care of (labels given as an option)."""

    pairs: tuple[Pair, ...]
    literal: bool = False


@dataclass(frozen=True, slots=True)
class Words(Command):
    """EXPOSE, VOLUME, USER, WORKDIR, STOPSIGNAL, MAINTAINER, SHELL."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program(Command):
    """RUN, CMD, ENTRYPOINT. shell: the one word is a line for the shell."""

    words: tuple[str, ...]
    shell: bool
    heredocs: tuple[Heredoc, ...] = ()
    network: str = ""


@dataclass(frozen=True, slots=True)
class Copy(Command):
    """ADD, COPY. from_ is a stage or an image; the documents take the place of sources `<<x`."""

    sources: tuple[str, ...]
    destination: str
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class Healthcheck(Command):
    """HEALTHCHECK, as the image's config has it."""

    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OnBuild(Command):
    """ONBUILD: an instruction for whoever builds on this image."""

    expression: str


def command(node: Node) -> Command:
    """The instruction that a node is; DockerfileError with its line."""
    make = _INSTRUCTIONS.get(node.name)
    if make is None:
        raise DockerfileError.at(node.line, f"unknown instruction: {node.name}")
    try:
        return make(node)
    except _Wrong as exc:
        raise DockerfileError.at(node.line, str(exc)) from exc


def label(labels: dict[str, str]) -> Pairs:
    """The LABEL instruction that the option `labels` of a build stands for."""
    pairs = tuple(sorted(labels.items()))
    text = " ".join(f"{_shown(key)}={_shown(value)}" for key, value in pairs)
    return Pairs("LABEL", f"LABEL {text}", 0, pairs, literal=True)


class _Wrong(ValueError):
    pass


def _flags(node: Node, known: Iterable[str] = ()) -> dict[str, str]:
    found: dict[str, str] = {}
    for flag in node.flags:
        name, equals, value = flag.removeprefix("--").partition("=")
        if name not in known:
            raise _Wrong(f"Unknown flag: {name}")
        if not equals:
            raise _Wrong(f"Missing a value on flag: {name}")
        if name in found:
            raise _Wrong(f"Duplicate flag specified: {name}")
        found[name] = value
    return found


def _array(text: str) -> tuple[str, ...] | None:
    """The JSON form; None if the text is none."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(word, str) for word in value):
        raise _Wrong("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(value)


def _from(node: Node) -> Command:
    flags = _flags(node, {"platform"})
    words = node.rest.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise _Wrong("FROM requires either one or three arguments")
    alias = words[2].lower() if len(words) == 3 else ""
    if alias and not _STAGE_NAME.fullmatch(alias):
        raise _Wrong(
            f'invalid name for build stage: "{words[2]}", '
            "name can't start with a number or contain symbols"
        )
    return From(node.name, node.original, node.line, words[0], flags.get("platform", ""), alias)


def _arg(node: Node) -> Command:
    _flags(node)
    words = _split(node.rest, node)
    if not words:
        raise _Wrong("ARG requires at least one argument")
    arguments: list[tuple[str, str | None]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise _Wrong("ARG names can not be blank")
        arguments.append((name, value if equals else None))
    return Arg(node.name, node.original, node.line, tuple(arguments))


def _pairs(node: Node) -> Command:
    _flags(node)
    words = _split(node.rest, node)
    if not words:
        raise _Wrong(f"{node.name} requires at least one argument")
    if "=" not in words[0]:
        parts = node.rest.split(None, 1)
        if len(parts) < 2:
            raise _Wrong(f"{node.name} must have two arguments")
        return Pairs(node.name, node.original, node.line, ((parts[0], parts[1].rstrip()),))
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise _Wrong(
                f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value'
            )
        if not key:
            raise _Wrong(f"{node.name} names can not be blank")
        pairs.append((key, value))
    return Pairs(node.name, node.original, node.line, tuple(pairs))


def _split(text: str, node: Node) -> list[str]:
    """Words with their quotes and escapes still in them: they are expanded later."""
    words: list[str] = []
    word, quote, i = "", "", 0
    escape = node.escape
    while i < len(text):
        c = text[i]
        if c == escape and quote != "'" and i + 1 < len(text):
            word += c + text[i + 1]
            i += 2
            continue
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c.isspace():
            if word:
                words.append(word)
            word = ""
            i += 1
            continue
        word += c
        i += 1
    return [*words, word] if word else words


def _one_word(node: Node) -> Command:
    _flags(node)
    if not node.rest:
        raise _Wrong(f"{node.name} requires exactly one argument")
    return Words(node.name, node.original, node.line, (node.rest,))


def _expose(node: Node) -> Command:
    _flags(node)
    words = tuple(node.rest.split())
    if not words:
        raise _Wrong("EXPOSE requires at least one argument")
    return Words(node.name, node.original, node.line, words)


def _volume(node: Node) -> Command:
    _flags(node)
    words = _array(node.rest)
    words = tuple(node.rest.split()) if words is None else words
    if not words:
        raise _Wrong("VOLUME requires at least one argument")
    return Words(node.name, node.original, node.line, words)


def _shell(node: Node) -> Command:
    _flags(node)
    words = _array(node.rest)
    if words is None:
        raise _Wrong("SHELL requires the arguments to be in JSON form")
    if not words:
        raise _Wrong("SHELL requires at least one argument")
    return Words(node.name, node.original, node.line, words)


def _program(node: Node) -> Command:
    flags = _flags(node, {"network", "mount", "security"} if node.name == "RUN" else ())
    for name in ("mount", "security"):
        if name in flags:
            raise _Wrong(
                f"the --{name} option requires BuildKit, which this builder is not: "
                "it speaks the classic builder API"
            )
    if flags.get("network", "default") not in ("default", "none", "host"):
        raise _Wrong(f"invalid network mode: {flags['network']}")
    words = _array(node.rest)
    shell = words is None
    words = (node.rest,) if words is None else words
    if shell and not node.rest:
        # Docker has nothing against it: the shell is started with nothing to do.
        words = ()
    if node.name == "RUN" and not shell and not words:
        raise _Wrong("RUN requires at least one argument")
    network = flags.get("network", "")
    return Program(node.name, node.original, node.line, words, shell, node.heredocs, network)


def _copy(node: Node) -> Command:
    known = {"from", "chown", "chmod", "link"} if node.name == "COPY" else {"chown", "chmod"}
    # Every layer is made by itself here: what --link asks for costs nothing and changes nothing.
    plain = tuple(flag for flag in node.flags if flag not in ("--link", "--link=true"))
    flags = _flags(Node(node.name, plain, node.rest, node.original, node.line), known)
    if flags.pop("link", "false") != "false":
        raise _Wrong("expecting boolean value for flag link")
    words = _array(node.rest)
    words = tuple(node.rest.split()) if words is None else words
    if len(words) < 2:
        raise _Wrong(
            f"{node.name} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    return Copy(
        node.name,
        node.original,
        node.line,
        words[:-1],
        words[-1],
        flags.get("from", ""),
        flags.get("chown", ""),
        flags.get("chmod", ""),
        node.heredocs,
    )


def _healthcheck(node: Node) -> Command:
    flags = _flags(node, _HEALTH_DURATIONS.keys() | {"retries"})
    words = node.rest.split(None, 1)
    if not words:
        raise _Wrong("HEALTHCHECK requires at least one argument")
    kind, rest = words[0].upper(), words[1].strip() if len(words) > 1 else ""
    config: dict[str, Any] = {}
    if kind == "NONE":
        if rest:
            raise _Wrong("HEALTHCHECK NONE takes no arguments")
        if flags:
            raise _Wrong("HEALTHCHECK NONE takes no flags")
        config["Test"] = ["NONE"]
    elif kind == "CMD":
        program = _array(rest)
        if not rest or program == ():
            raise _Wrong("Missing command after HEALTHCHECK CMD")
        config["Test"] = ["CMD-SHELL", rest] if program is None else ["CMD", *program]
    else:
        raise _Wrong(f'Unknown type "{words[0]}" in HEALTHCHECK (try CMD)')
    for flag, key in _HEALTH_DURATIONS.items():
        if value := duration(flags.get(flag, "0")):
            if value < 1_000_000:
                raise _Wrong(f'Interval "{flag}" cannot be less than 1ms')
            config[key] = value
    retries = flags.get("retries")
    if retries is not None:
        if not re.fullmatch(r"-?\d+", retries):
            raise _Wrong(f'strconv.ParseInt: parsing "{retries}": invalid syntax')
        if int(retries) < 1:
            raise _Wrong(f"--retries must be at least 1 (not {int(retries)})")
        config["Retries"] = int(retries)
    return Healthcheck(node.name, node.original, node.line, config)


_HEALTH_DURATIONS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}


def duration(text: str) -> int:
    """Nanoseconds of `1m30s`."""
    if not _DURATION.fullmatch(text):
        if re.fullmatch(r"[+-]?\d+(\.\d*)?", text):
            raise _Wrong(f'time: missing unit in duration "{text}"')
        raise _Wrong(f'time: invalid duration "{text}"')
    total = sum(int(float(number) * _UNITS[unit]) for number, unit in _PART.findall(text))
    return -total if text.startswith("-") else total


def _on_build(node: Node) -> Command:
    _flags(node)
    name = node.rest.split(None, 1)[0].upper() if node.rest else ""
    if not name:
        raise _Wrong("ONBUILD requires at least one argument")
    if name == "ONBUILD":
        raise _Wrong("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if name in ("MAINTAINER", "FROM"):
        raise _Wrong(f"{name} isn't allowed as an ONBUILD trigger")
    expression = node.rest + "".join(
        f"\n{document.content}{document.name}" for document in node.heredocs
    )
    return OnBuild(node.name, node.original, node.line, expression)


def _shown(text: str) -> str:
    plain = re.fullmatch(r"[^\s\"'\\$]*", text)
    return text if plain else json.dumps(text, ensure_ascii=False)


_INSTRUCTIONS: dict[str, Callable[[Node], Command]] = {
    "ADD": _copy,
    "ARG": _arg,
    "CMD": _program,
    "COPY": _copy,
    "ENTRYPOINT": _program,
    "ENV": _pairs,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _pairs,
    "MAINTAINER": _one_word,
    "ONBUILD": _on_build,
    "RUN": _program,
    "SHELL": _shell,
    "STOPSIGNAL": _one_word,
    "USER": _one_word,
    "VOLUME": _volume,
    "WORKDIR": _one_word,
}
