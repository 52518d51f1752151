"""Container records as `docker ps` and `docker inspect` show them."""

from __future__ import annotations

from typing import Any

from mooring.kit import procpaths
from mooring.kit.endpoints import parse_link, predefined_id
from mooring.kit.models.container import (
    ContainerRecord,
    Endpoint,
    MountPoint,
    State,
)
from mooring.kit.models.network import EndpointSettings

from . import ports
from .texts import duration, next_change, rfc3339

RUNNING_STATES = frozenset({State.RUNNING, State.PAUSED, State.STOPPING, State.RESTARTING})
"""The states in which Docker calls a container running."""
DEFAULT_RUNTIME = "mooring"
_SHM_SIZE = 64 << 20
_FOREVER = 1 << 62


def shown_state(record: ContainerRecord) -> str:
    """The state in Docker's vocabulary."""
    match record.state:
        case State.STARTING:
            return "exited" if record.finished_ns else "created"
        case State.STOPPING:
            return "running"
        case State.REMOVED:
            return "removing"
        case state:
            return state.value


def status(record: ContainerRecord, now_ns: int) -> tuple[str, int]:
    """`Up 5 seconds (healthy)`, and the Unix time in ns at which it may read differently."""
    match shown_state(record):
        case "running" | "paused":
            text, until = _since(record.started_ns, now_ns)
            if record.state is State.PAUSED:
                return f"Up {text} (Paused)", until
            return f"Up {text}{_health(record)}", until
        case "restarting":
            text, until = _since(record.finished_ns, now_ns)
            return f"Restarting ({record.exit_code}) {text} ago", until
        case "exited":
            text, until = _since(record.finished_ns, now_ns)
            return f"Exited ({record.exit_code}) {text} ago", until
        case "removing":
            return "Removal In Progress", _FOREVER
        case "dead":
            return "Dead", _FOREVER
    return "Created", _FOREVER


def _since(moment_ns: int, now_ns: int) -> tuple[str, int]:
    seconds = max(0, now_ns - moment_ns) // 1_000_000_000
    return duration(seconds), moment_ns + next_change(seconds) * 1_000_000_000


def _health(record: ContainerRecord) -> str:
    if record.health is None:
        return ""
    if record.health.status == "starting":
        return " (health: starting)"
    return f" ({record.health.status})"


def summary(record: ContainerRecord, image: str) -> dict[str, Any]:
    """An element of the list, without Status; image is the name to show."""
    return {
        "Id": record.id,
        "Names": [f"/{record.name}"],
        "Image": image,
        "ImageID": record.image_id,
        "Command": _command(record),
        "Created": record.created_ns // 1_000_000_000,
        "Ports": ports.listed(record),
        "Labels": record.config.labels or {},
        "State": shown_state(record),
        "HostConfig": _summary_host_config(record),
        "NetworkSettings": {"Networks": _networks(record)},
        "Mounts": [_mount(mount) for mount in record.mounts if not mount.hidden],
    }


def _command(record: ContainerRecord) -> str:
    if not record.args:
        return record.path
    quoted = (f"'{arg}'" if " " in arg else arg for arg in record.args)
    return f"{record.path} {' '.join(quoted)}"


def _summary_host_config(record: ContainerRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"NetworkMode": _network_mode(record)}
    if record.host_config.annotations:
        found["Annotations"] = record.host_config.annotations
    return found


def _network_mode(record: ContainerRecord) -> str:
    mode = record.host_config.network_mode
    return "bridge" if mode in ("", "default") else mode


def inspect(record: ContainerRecord, exec_ids: list[str], run_dir: str) -> dict[str, Any]:
    """The whole of a container. run_dir is the host's, where the files of its runs are."""
    directory = f"{run_dir}/shims/{record.id}.{record.run}"
    started = record.run > 0
    return {
        "Id": record.id,
        "Created": rfc3339(record.created_ns),
        "Path": record.path,
        "Args": record.args,
        "State": _state(record),
        "Image": record.image_id,
        "ResolvConfPath": f"{directory}/resolv.conf" if started else "",
        "HostnamePath": f"{directory}/hostname" if started else "",
        "HostsPath": f"{directory}/hosts" if started else "",
        "LogPath": "",
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": "overlay2",
        "Platform": record.platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": exec_ids or None,
        "HostConfig": _host_config(record),
        "GraphDriver": {
            "Name": "overlay2",
            "Data": {
                "ID": record.id,
                "MergedDir": f"{directory}/rootfs",
                "UpperDir": f"{directory}/upper",
                "WorkDir": f"{directory}/work",
            },
        },
        "Mounts": [_mount(mount) for mount in record.mounts if not mount.hidden],
        "Config": _config(record),
        "NetworkSettings": _network_settings(record),
    }


def _state(record: ContainerRecord) -> dict[str, Any]:
    state = shown_state(record)
    running = record.state in RUNNING_STATES
    found: dict[str, Any] = {
        "Status": state,
        "Running": running,
        "Paused": record.state is State.PAUSED,
        "Restarting": record.state is State.RESTARTING,
        "OOMKilled": record.oom_killed,
        "Dead": record.state is State.DEAD,
        "Pid": record.pid if running else 0,
        "ExitCode": record.exit_code,
        "Error": record.error,
        "StartedAt": rfc3339(record.started_ns),
        "FinishedAt": rfc3339(record.finished_ns),
    }
    if record.health is not None:
        found["Health"] = {
            "Status": record.health.status,
            "FailingStreak": record.health.failing_streak,
            "Log": [
                {
                    "Start": rfc3339(result.start_ns),
                    "End": rfc3339(result.end_ns),
                    "ExitCode": result.exit_code,
                    "Output": result.output,
                }
                for result in record.health.log
            ],
        }
    return found


def _config(record: ContainerRecord) -> dict[str, Any]:
    found = record.config.model_dump(by_alias=True)
    for name in (
        "ExposedPorts",
        "Healthcheck",
        "StopSignal",
        "Shell",
        "ArgsEscaped",
        "NetworkDisabled",
        "MacAddress",
    ):
        if not found[name]:
            del found[name]
    if found["StopTimeout"] is None:
        del found["StopTimeout"]
    if health := found.get("Healthcheck"):
        found["Healthcheck"] = {name: value for name, value in health.items() if value}
    found["Env"] = found["Env"] or []
    found["Labels"] = found["Labels"] or {}
    found["Hostname"] = found["Hostname"] or record.id[:12]
    return found


def _host_config(record: ContainerRecord) -> dict[str, Any]:
    given = record.host_config
    found = given.model_dump(by_alias=True)
    found["NetworkMode"] = _network_mode(record)
    links = [parse_link(text) for text in given.links or ()]
    found["Links"] = [f"/{target}:/{record.name}/{alias}" for target, alias in links] or None
    found["PortBindings"] = found["PortBindings"] or {}
    found["RestartPolicy"]["Name"] = found["RestartPolicy"]["Name"] or "no"
    found["LogConfig"] = {
        "Type": given.log_config.type or "json-file",
        "Config": given.log_config.config or {},
    }
    found["IpcMode"] = given.ipc_mode or "private"
    found["CgroupnsMode"] = given.cgroupns_mode or ("host" if given.privileged else "private")
    found["Runtime"] = given.runtime or DEFAULT_RUNTIME
    found["ShmSize"] = given.shm_size or _SHM_SIZE
    found["ConsoleSize"] = given.console_size or [0, 0]
    for name in ("Dns", "DnsOptions", "DnsSearch", "BlkioWeightDevice", "Devices"):
        found[name] = found[name] or []
    found["BlkioWeightDevice"] = [
        {"Path": device.path, "Weight": device.weight} for device in given.blkio_weight_device or []
    ]
    for name, devices in (
        ("BlkioDeviceReadBps", given.blkio_device_read_bps),
        ("BlkioDeviceWriteBps", given.blkio_device_write_bps),
        ("BlkioDeviceReadIOps", given.blkio_device_read_iops),
        ("BlkioDeviceWriteIOps", given.blkio_device_write_iops),
    ):
        found[name] = [{"Path": device.path, "Rate": device.rate} for device in devices or []]
    for name in ("StorageOpt", "Tmpfs", "Sysctls", "Annotations", "Mounts", "Init"):
        if found[name] is None:
            del found[name]
    hidden = not given.privileged
    if given.masked_paths is None:
        found["MaskedPaths"] = procpaths.MASKED_PATHS if hidden else None
    if given.readonly_paths is None:
        found["ReadonlyPaths"] = procpaths.READONLY_PATHS if hidden else None
    return found


def _mount(mount: MountPoint) -> dict[str, Any]:
    found: dict[str, Any] = {"Type": mount.type}
    if mount.name:
        found["Name"] = mount.name
    found["Source"] = mount.source
    found["Destination"] = mount.destination
    if mount.driver:
        found["Driver"] = mount.driver
    found["Mode"] = mount.mode
    found["RW"] = mount.rw
    found["Propagation"] = mount.propagation
    return found


def _networks(record: ContainerRecord) -> dict[str, Any]:
    endpoints = record.network.endpoints
    names = list(endpoints)
    if not names and not record.network.sandbox_id:
        mode = _network_mode(record)
        if mode.startswith("container:") or record.disconnected:
            return {}
        names = list(record.networking) or [mode]
    return {name: _endpoint(record, name, endpoints.get(name) or Endpoint()) for name in names}


def _endpoint(record: ContainerRecord, name: str, endpoint: Endpoint) -> dict[str, Any]:
    given = record.networking.get(name) or EndpointSettings()
    addresses = given.ipam_config
    return {
        "IPAMConfig": addresses.model_dump(by_alias=True, exclude_defaults=True)
        if addresses is not None
        else None,
        "Links": given.links,
        "Aliases": given.aliases,
        "MacAddress": endpoint.mac_address or given.mac_address,
        "DriverOpts": given.driver_opts,
        "GwPriority": given.gw_priority,
        "NetworkID": endpoint.network_id or predefined_id(name),
        "EndpointID": endpoint.endpoint_id,
        "Gateway": endpoint.gateway,
        "IPAddress": endpoint.ip_address,
        "IPPrefixLen": endpoint.ip_prefix_len,
        "IPv6Gateway": endpoint.ipv6_gateway,
        "GlobalIPv6Address": endpoint.global_ipv6_address,
        "GlobalIPv6PrefixLen": endpoint.global_ipv6_prefix_len,
        "DNSNames": endpoint.dns_names or None,
    }


def _network_settings(record: ContainerRecord) -> dict[str, Any]:
    bridge = record.network.endpoints.get("bridge") or Endpoint()
    return {
        "Bridge": "",
        "SandboxID": record.network.sandbox_id,
        "SandboxKey": f"/proc/{record.pid}/ns/net" if record.network.sandbox_id else "",
        "Ports": ports.settings(record),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.endpoint_id,
        "Gateway": bridge.gateway,
        "GlobalIPv6Address": bridge.global_ipv6_address,
        "GlobalIPv6PrefixLen": bridge.global_ipv6_prefix_len,
        "IPAddress": bridge.ip_address,
        "IPPrefixLen": bridge.ip_prefix_len,
        "IPv6Gateway": bridge.ipv6_gateway,
        "MacAddress": bridge.mac_address,
        "Networks": _networks(record),
    }
