"""The body of `containers/create` and of `exec`, as commands."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from mooring.kit.errors import InvalidParameter, NotSupported
from mooring.kit.models.container import ContainerConfig, CreateContainer, HostConfig
from mooring.kit.models.exec import ExecConfig
from mooring.kit.models.network import EndpointSettings

from .decode import fit

_UNSUPPORTED = (
    "Capabilities",
    "CpuCount",
    "CpuPercent",
    "IOMaximumBandwidth",
    "IOMaximumIOps",
    "KernelMemory",
    "KernelMemoryTCP",
    "DiskQuota",
)
"""Of HostConfig: in the API, for other platforms or withdrawn, and not in the record."""


class _Networking(BaseModel):
    """NetworkingConfig; what an endpoint may ask for is the lifecycle manager's to judge."""

    EndpointsConfig: dict[str, dict[str, Any] | None] | None = None


class _Wrapper(BaseModel):
    """The parts of the body beside ContainerConfig."""

    model_config = ConfigDict(extra="ignore")

    HostConfig: dict[str, Any] | None = None
    NetworkingConfig: _Networking | None = None


def create_request(body: dict[str, Any], name: str, platform: str) -> CreateContainer:
    """The command of a create request; InvalidParameter, NotSupported."""
    parts = fit(_Wrapper, body)
    if not body:
        raise InvalidParameter("config cannot be empty in order to create a container")
    host = parts.HostConfig or {}
    for option in _UNSUPPORTED:
        if host.get(option):
            raise NotSupported(f"option HostConfig.{option} is not supported")
    networking = parts.NetworkingConfig
    endpoints = (networking.EndpointsConfig if networking else None) or {}
    return CreateContainer(
        name=name,
        platform=platform,
        config=fit(ContainerConfig, body),
        host_config=_recorded(fit(HostConfig, host, where="HostConfig")),
        networking={
            network: fit(EndpointSettings, given or {}, where=f"EndpointsConfig.{network}")
            for network, given in endpoints.items()
        },
    )


def _recorded(host: HostConfig) -> HostConfig:
    """As Docker records it: what asks for no limit asks for nothing."""
    changes: dict[str, None] = {}
    if host.pids_limit is not None and host.pids_limit <= 0:
        changes["pids_limit"] = None
    if host.memory_swappiness == -1:
        changes["memory_swappiness"] = None
    return host.model_copy(update=changes) if changes else host


_FIXED = (
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "Init",
    "MemorySwappiness",
    "OomKillDisable",
    "Ulimits",
    "CgroupParent",
)
"""Of the resources: what Docker takes in an update and leaves undone."""


def update_config(body: dict[str, Any]) -> HostConfig:
    """The body of `containers/{id}/update`; InvalidParameter, NotSupported."""
    given = fit(HostConfig, body, where="UpdateConfig")
    for option in (*_UNSUPPORTED, *_FIXED):
        if body.get(option):
            raise NotSupported(f"option {option} can not be updated")
    return given


class _Exec(BaseModel):
    """The body of `POST /containers/{id}/exec`."""

    Cmd: list[str] | None = None
    Env: list[str] | None = None
    User: str = ""
    WorkingDir: str = ""
    Tty: bool = False
    Privileged: bool = False
    AttachStdin: bool = False
    AttachStdout: bool = False
    AttachStderr: bool = False
    DetachKeys: str = ""
    ConsoleSize: list[int] | None = None


class ExecStart(BaseModel):
    """The body of `POST /exec/{id}/start`."""

    Detach: bool = False
    Tty: bool | None = None
    ConsoleSize: list[int] | None = None


def exec_config(body: dict[str, Any]) -> ExecConfig:
    """What to execute; InvalidParameter if there is no command."""
    given = fit(_Exec, body)
    if not given.Cmd:
        raise InvalidParameter("No exec command specified")
    return ExecConfig(
        cmd=given.Cmd,
        env=given.Env or [],
        user=given.User,
        working_dir=given.WorkingDir,
        tty=given.Tty,
        privileged=given.Privileged,
        attach_stdin=given.AttachStdin,
        attach_stdout=given.AttachStdout,
        attach_stderr=given.AttachStderr,
        detach_keys=given.DetachKeys,
    )


def console_size(given: list[int] | None) -> tuple[int, int]:
    """[rows, columns] of a body; (0, 0) if there is none; InvalidParameter."""
    if not given:
        return 0, 0
    if len(given) != 2 or not all(0 <= value <= 0xFFFF for value in given):
        raise InvalidParameter("invalid ConsoleSize: it is [height, width]")
    return given[0], given[1]
