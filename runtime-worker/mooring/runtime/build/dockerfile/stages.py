"""A whole Dockerfile: the ARGs before the first FROM, then stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from . import parser
from .errors import DockerfileError
from .instructions import Arg, Command, From, command, label


@dataclass(frozen=True, slots=True)
class Stage:
    """What one FROM begins."""

    index: int
    base: From
    commands: tuple[Command, ...]

    @property
    def name(self) -> str:
        """How other stages refer to it."""
        return self.base.alias or str(self.index)


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """What is to be built."""

    arguments: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    escape: str
    warnings: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many `Step n/m` lines there will be."""
        return len(self.arguments) + sum(1 + len(stage.commands) for stage in self.stages)


def read(text: str) -> Dockerfile:
    """A Dockerfile's text, checked; DockerfileError."""
    parsed = parser.parse(text)
    arguments: list[Arg] = []
    stages: list[tuple[From, list[Command]]] = []
    for node in parsed.nodes:
        made = command(node)
        if isinstance(made, From):
            stages.append((made, []))
        elif stages:
            stages[-1][1].append(made)
        elif isinstance(made, Arg):
            arguments.append(made)
        else:
            raise DockerfileError("no build stage in current context")
    if not stages:
        raise DockerfileError("no build stage in current context")
    made_stages = [Stage(i, base, tuple(rest)) for i, (base, rest) in enumerate(stages)]
    _check_names(made_stages)
    return Dockerfile(tuple(arguments), tuple(made_stages), parsed.escape, parsed.warnings)


def select(dockerfile: Dockerfile, target: str, labels: dict[str, str]) -> Dockerfile:
    """The stages up to the target, the last with the labels that the user asked for."""
    stages = list(dockerfile.stages)
    if target:
        index = stage_index(stages, target)
        if index is None:
            raise DockerfileError(f"failed to reach build target {target} in Dockerfile")
        stages = stages[: index + 1]
    if labels:
        last = stages[-1]
        stages[-1] = dataclasses.replace(last, commands=(*last.commands, label(labels)))
    return dataclasses.replace(dockerfile, stages=tuple(stages))


def stage_index(stages: Sequence[Stage], name: str) -> int | None:
    """The stage of that name or number; None if there is none."""
    for stage in stages:
        if stage.base.alias and stage.base.alias == name.lower():
            return stage.index
    return int(name) if name.isdecimal() and int(name) < len(stages) else None


def trigger(expression: str, escape: str = "\\") -> Command:
    """The instruction that an image's ONBUILD has; DockerfileError."""
    prefix = "" if escape == "\\" else f"# escape={escape}\n"
    nodes = parser.parse(prefix + expression).nodes
    if len(nodes) != 1:
        raise DockerfileError(f"onbuild trigger should be a single expression, not: {expression}")
    made = command(nodes[0])
    if made.name in ("FROM", "ONBUILD", "MAINTAINER"):
        raise DockerfileError(f"{made.name} isn't allowed as an ONBUILD trigger")
    return dataclasses.replace(made, line=0)


def _check_names(stages: Sequence[Stage]) -> None:
    seen: set[str] = set()
    for stage in stages:
        alias = stage.base.alias
        if alias in seen:
            raise DockerfileError.at(stage.base.line, f"{alias} stage name already used")
        if alias:
            seen.add(alias)
