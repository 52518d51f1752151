"""A container's Config merged with its image's, by Docker's rules."""

from __future__ import annotations

from typing import Any

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import ContainerConfig, HealthConfig


def merge(config: ContainerConfig, image: dict[str, Any]) -> ContainerConfig:
    """What the container runs with: the user's word first, then the image's.

    InvalidParameter `no command specified` if neither names a program.
    """
    defaults = ContainerConfig.model_validate({k: v for k, v in image.items() if v is not None})
    entrypoint, command = _program(config, defaults)
    if not entrypoint and not command:
        raise InvalidParameter("no command specified")
    return config.model_copy(
        update={
            "entrypoint": entrypoint,
            "cmd": command,
            "user": config.user or defaults.user,
            "working_dir": config.working_dir or defaults.working_dir,
            "stop_signal": config.stop_signal or defaults.stop_signal,
            "shell": config.shell or defaults.shell,
            "env": _environment(config.env, defaults.env),
            "labels": {**(defaults.labels or {}), **(config.labels or {})},
            "exposed_ports": _union(defaults.exposed_ports, config.exposed_ports),
            "volumes": _union(defaults.volumes, config.volumes),
            "healthcheck": _health(config.healthcheck, defaults.healthcheck),
            "on_build": config.on_build or defaults.on_build,
        }
    )


def command_line(config: ContainerConfig) -> tuple[str, list[str]]:
    """Path and arguments, as inspect shows them, of a merged Config."""
    words = [*(config.entrypoint or []), *(config.cmd or [])]
    return words[0], words[1:]


def _program(
    config: ContainerConfig, image: ContainerConfig
) -> tuple[list[str] | None, list[str] | None]:
    entrypoint, command = config.entrypoint, config.cmd
    # The image's Cmd belongs to the image's Entrypoint: who replaces that one gets neither.
    if not entrypoint:
        command = command or image.cmd
        if entrypoint is None:
            entrypoint = image.entrypoint
    # [""] is how a client says: no entrypoint, not even the image's.
    if entrypoint == [""]:
        entrypoint = None
    return entrypoint, command


def _environment(mine: list[str] | None, image: list[str] | None) -> list[str]:
    """The user's variables, then those of the image that the user did not mention."""
    merged = list(mine or [])
    named = {variable.partition("=")[0] for variable in merged}
    merged += [v for v in image or [] if v.partition("=")[0] not in named]
    return merged


def _union(
    image: dict[str, dict[str, Any]] | None, mine: dict[str, dict[str, Any]] | None
) -> dict[str, dict[str, Any]] | None:
    return {**(image or {}), **(mine or {})} or None


def _health(mine: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    if mine is None or image is None:
        return mine or image
    return HealthConfig(
        test=mine.test or image.test,
        interval=mine.interval or image.interval,
        timeout=mine.timeout or image.timeout,
        retries=mine.retries or image.retries,
        start_period=mine.start_period or image.start_period,
        start_interval=mine.start_interval or image.start_interval,
    )
