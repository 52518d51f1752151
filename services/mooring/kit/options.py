"""Pure: what can be said of a container's options without asking a host.

`check` is called when a container is created. It refuses in Docker's words; an option that
Mooring does not have yet is refused by name, never accepted and ignored.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from . import capabilities, endpoints, mountspecs, ports, signals
from .errors import InvalidParameter, NotSupported
from .models.container import ContainerConfig, HostConfig, LogConfig
from .models.network import EndpointSettings
from .resources import check_resources

BUILT_IN_RUNTIMES = frozenset({"", "mooring", "runc", "io.containerd.runc.v2"})
"""Clients send runc's name because Docker's default has it; the built-in runtime answers to it."""

MOST_PORTS = 4096
"""Of one container: each is a socket that is held on the host."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?\Z", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_NAMESPACED_KERNEL = frozenset(
    {
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    }
)


def check(
    config: ContainerConfig,
    host: HostConfig,
    *,
    cpus: int = 0,
    networking: Mapping[str, EndpointSettings] | None = None,
) -> list[str]:
    """Warnings for what will be adjusted; InvalidParameter or NotSupported for what cannot be.

    cpus is how many the chosen host has, 0 when that is not known. networking is
    NetworkingConfig.EndpointsConfig as given.
    """
    _unsupported(host)
    warnings = _check_ports(config, host)
    endpoints.check(config, host, networking or {})
    _check_config(config)
    _check_modes(config, host)
    check_policy(host)
    _check_security(host)
    _check_names(host)
    _check_sysctls(host)
    mountspecs.all_mounts(host, config.volumes or ())
    log_limits(host.log_config)
    return warnings + check_resources(host, cpus)


def container_of(mode: str) -> str:
    """The container that a mode `container:<name or id>` names, or an empty string."""
    kind, colon, name = mode.partition(":")
    return name if colon and kind == "container" else ""


def size(text: str) -> int:
    """Bytes of `10m`, `1.5GiB`, `512`; ValueError for what is none."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def log_limits(log: LogConfig) -> tuple[int, int] | None:
    """(bytes of a file, files) that the log options ask for; None leaves the engine's own."""
    options = dict(log.config or {})
    if log.type not in ("", "json-file", "local", "none"):
        raise InvalidParameter(
            f"logger: no log driver named '{log.type}' is registered"
            if not re.match(
                r"(syslog|journald|gelf|fluentd|awslogs|splunk|etwlogs|gcplogs)\Z", log.type
            )
            else f"log driver {log.type} is not supported yet, use json-file"
        )
    driver = log.type or "json-file"
    if options.pop("mode", "blocking") != "blocking":
        raise NotSupported("log option mode=non-blocking is not supported: no output is dropped")
    if options.pop("compress", "false") not in ("false", "0"):
        raise NotSupported("log option compress is not supported yet")
    given_size, given_files = options.pop("max-size", ""), options.pop("max-file", "")
    for name in options:
        if name in ("labels", "labels-regex", "env", "env-regex", "tag", "max-buffer-size"):
            raise NotSupported(f"log option {name} is not supported yet")
        raise InvalidParameter(f"unknown log opt '{name}' for {driver} log driver")
    if not given_size and not given_files:
        return None
    if driver == "none":
        raise InvalidParameter(f"unknown log opt 'max-size' for {driver} log driver")
    if not given_size or given_size == "-1":
        raise InvalidParameter(f"max-file cannot be set when max-size is not set ({driver})")
    try:
        limit, files = size(given_size), int(given_files or ("5" if driver == "local" else "1"))
    except ValueError as exc:
        raise InvalidParameter(f"invalid log options max-size, max-file: {exc}") from exc
    if limit <= 0:
        raise InvalidParameter("max-size must be a positive number")
    if files < 1:
        raise InvalidParameter("max-file cannot be less than 1")
    return limit, files


def _unsupported(host: HostConfig) -> None:
    if host.runtime not in BUILT_IN_RUNTIMES:
        raise InvalidParameter(f"unknown or invalid runtime name: {host.runtime}")
    if host.isolation not in ("", "default"):
        raise InvalidParameter(f"invalid isolation '{host.isolation}' on linux")
    if host.userns_mode not in ("", "host"):
        raise InvalidParameter(f"invalid user namespace mode: {host.userns_mode}")
    if host.cgroup:
        raise InvalidParameter(f"invalid cgroup spec: {host.cgroup}")
    for option, value in (
        ("DeviceRequests", host.device_requests),
        ("StorageOpt", host.storage_opt),
        ("CpuRealtimePeriod", host.cpu_realtime_period),
        ("CpuRealtimeRuntime", host.cpu_realtime_runtime),
    ):
        if value:
            raise NotSupported(f"option {option} is not supported yet")


def _check_ports(config: ContainerConfig, host: HostConfig) -> list[str]:
    ports.exposed(config)
    wanted = ports.wanted(config, host)
    if len(wanted) > MOST_PORTS:
        raise InvalidParameter(f"a container can publish {MOST_PORTS} ports, not {len(wanted)}")
    if wanted and host.network_mode == "host":
        return ["Published ports are discarded when using host network mode"]
    return []


def _check_config(config: ContainerConfig) -> None:
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid,"
            " it needs to be an absolute path"
        )
    for variable in config.env or []:
        if not variable or variable.startswith("="):
            raise InvalidParameter(f"invalid environment variable: {variable}")
        if "\0" in variable:
            raise InvalidParameter("invalid environment variable: it contains a NUL byte")
    for option, text in (("Hostname", config.hostname), ("Domainname", config.domainname)):
        if len(text) > 64 or re.search(r"[\s\0/]", text):
            raise InvalidParameter(f"invalid {option}: '{text}'")
    if config.stop_signal:
        signals.parse(config.stop_signal)
    if config.stop_timeout is not None and config.stop_timeout < -1:
        raise InvalidParameter(f"invalid StopTimeout: {config.stop_timeout}")
    for argument in (*(config.entrypoint or ()), *(config.cmd or ())):
        if "\0" in argument:
            raise InvalidParameter("invalid argument: it contains a NUL byte")
    health = config.healthcheck
    if health is not None:
        for option, value in (
            ("Interval", health.interval),
            ("Timeout", health.timeout),
            ("StartPeriod", health.start_period),
            ("StartInterval", health.start_interval),
        ):
            if value != 0 and value < 1_000_000:
                raise InvalidParameter(f"{option} in Healthcheck cannot be less than 1ms")
        if health.retries < 0:
            raise InvalidParameter("Retries in Healthcheck cannot be negative")


def _check_modes(config: ContainerConfig, host: HostConfig) -> None:
    for name, mode, allowed in (
        ("PID", host.pid_mode, {"", "host"}),
        ("IPC", host.ipc_mode, {"", "none", "private", "host", "shareable"}),
        ("UTS", host.uts_mode, {"", "host"}),
    ):
        if mode not in allowed and not (name != "UTS" and container_of(mode)):
            raise InvalidParameter(f"invalid {name} mode: {mode}")
    if host.cgroupns_mode not in ("", "private", "host"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host.cgroupns_mode}")
    if host.uts_mode == "host" and config.hostname:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    if config.mac_address or host.network_mode.startswith("container:"):
        _check_joined_network(config, host)


def _check_joined_network(config: ContainerConfig, host: HostConfig) -> None:
    if not host.network_mode.startswith("container:"):
        return
    if not container_of(host.network_mode):
        raise InvalidParameter("invalid container format container:<name|id>")
    for option, value in (
        ("hostname and the network mode", config.hostname),
        ("dns and the network mode", host.dns),
        ("custom host-to-IP mapping and the network mode", host.extra_hosts),
        ("mac-address and the network mode", config.mac_address),
        ("links and the network mode", host.links),
        ("port publishing and the container type network mode", host.port_bindings),
        ("port publishing and the container type network mode", host.publish_all_ports),
    ):
        if value:
            raise InvalidParameter(f"conflicting options: {option}")


def check_policy(host: HostConfig) -> None:
    """InvalidParameter for a restart policy that is none, or not with --rm."""
    policy = host.restart_policy
    if policy.name not in ("", "no", "always", "unless-stopped", "on-failure"):
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of 'no', 'always',"
            " 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum_retry_count > 0 and policy.name != "on-failure":
        raise InvalidParameter(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if host.auto_remove and policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")


def _check_security(host: HostConfig) -> None:
    capabilities.normalise(host.cap_add or (), "CapAdd")
    capabilities.normalise(host.cap_drop or (), "CapDrop")
    for option in host.security_opt or []:
        security_option(option)


def security_option(option: str) -> tuple[str, str]:
    """(`seccomp` or `no-new-privileges`, value); an empty name for what needs no doing here."""
    if option == "no-new-privileges":
        return option, "true"
    if option == "disable":
        return "", ""
    name, separator, value = option.partition("=")
    if not separator:
        name, separator, value = option.partition(":")
    if not separator:
        raise InvalidParameter(f'invalid --security-opt 1: "{option}"')
    match name:
        case "seccomp":
            return name, value
        case "no-new-privileges":
            if value not in ("true", "false", "1", "0"):
                raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
            return name, "true" if value in ("true", "1") else "false"
        case "apparmor":
            if value in ("unconfined", ""):
                return "", ""
            raise NotSupported(f"security option apparmor={value} is not supported yet")
        case "label":
            if value == "disable":
                return "", ""
            raise NotSupported(f"security option label={value} is not supported yet")
    raise InvalidParameter(f'invalid --security-opt 2: "{option}"')


def _check_names(host: HostConfig) -> None:
    for server in host.dns or []:
        try:
            ipaddress.ip_address(server)
        except ValueError as exc:
            raise InvalidParameter(f"bad DNS address: {server}") from exc
    for entry in host.extra_hosts or []:
        extra_host(entry)
    for text in (*(host.dns_search or ()), *(host.dns_options or ())):
        if not text or re.search(r"\s", text):
            raise InvalidParameter(f"invalid DNS search domain or option: '{text}'")


def extra_host(entry: str) -> tuple[str, str]:
    """(name, address or `host-gateway`) of one element of ExtraHosts."""
    name, separator, address = entry.partition(":")
    if not separator or not name or not address or re.search(r"\s", name):
        raise InvalidParameter(f'bad format for add-host: "{entry}"')
    if address == "host-gateway":
        return name, address
    try:
        return name, str(ipaddress.ip_address(address.strip("[]")))
    except ValueError as exc:
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"') from exc


def _check_sysctls(host: HostConfig) -> None:
    for given in host.sysctls or {}:
        # A slash separates as well as a dot does, and then a dot is part of a name.
        name = given.replace("/", ".")
        if re.search(r"(^|\.)\.|[\s\0]|\.$", name):
            raise InvalidParameter(f"invalid sysctl: '{given}'")
        if name in _NAMESPACED_KERNEL or name.startswith("fs.mqueue."):
            if host.ipc_mode == "host":
                raise InvalidParameter(
                    f'sysctl "{given}" is not allowed in the hosts ipc namespace'
                )
        elif name.startswith("net."):
            if host.network_mode == "host":
                raise InvalidParameter(f'sysctl "{given}" not allowed in host network namespace')
        elif name == "kernel.domainname":
            if host.uts_mode == "host":
                raise InvalidParameter(
                    f'sysctl "{given}" is not allowed in the hosts uts namespace'
                )
        elif name == "kernel.hostname":
            raise InvalidParameter(f'sysctl "{given}" conflicts with the option Hostname')
        else:
            raise InvalidParameter(f'sysctl "{given}" is not in a separate kernel namespace')
