"""ping, version, info: about the engine itself."""

from __future__ import annotations

import datetime
import platform
from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import TEXT, Reply, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema.containers import DEFAULT_RUNTIME, RUNNING_STATES
from mooring.gateway.schema.platform import go_architecture
from mooring.gateway.versions import ENGINE_VERSION, NEWEST, OLDEST, text
from mooring.kit.config import Settings
from mooring.kit.models.container import State
from mooring.kit.models.host import NodeRecord

_PING_HEADERS = (
    ("Builder-Version", "1"),
    ("Swarm", "inactive"),
    ("Cache-Control", "no-cache, no-store, must-revalidate"),
    ("Pragma", "no-cache"),
)
_EXT = dict.fromkeys(("ext2", "ext3", "ext4"), "extfs")
"""Docker's name for them."""
_PONG = Reply(200, b"OK", TEXT, _PING_HEADERS)


def ping(request: Request) -> Reply:
    """`OK`, whatever else is the matter."""
    return _PONG


class SystemRoutes:
    """The section System of the API, without events."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._platform = platform.uname()

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("GET", "/_ping", Kind.ALWAYS, ping),
            Route("HEAD", "/_ping", Kind.ALWAYS, ping),
            Route("GET", "/version", Kind.ALWAYS, self.version),
            Route("GET", "/info", Kind.INSTANT, self.info),
        ]

    def version(self, request: Request) -> Reply:
        """Versions of the engine and of its API."""
        kernel, machine = self._platform.release, go_architecture(self._platform.machine)
        details = {
            "ApiVersion": text(NEWEST),
            "MinAPIVersion": text(OLDEST),
            "Os": "linux",
            "Arch": machine,
            "KernelVersion": kernel,
            "Experimental": "false",
            "GitCommit": "",
            "GoVersion": "",
        }
        return json_reply(
            {
                "Platform": {"Name": "Mooring"},
                "Components": [{"Name": "Engine", "Version": ENGINE_VERSION, "Details": details}],
                "Version": ENGINE_VERSION,
                "ApiVersion": text(NEWEST),
                "MinAPIVersion": text(OLDEST),
                "GitCommit": "",
                "GoVersion": "",
                "Os": "linux",
                "Arch": machine,
                "KernelVersion": kernel,
                "BuildTime": "",
            }
        )

    def info(self, request: Request) -> Reply:
        """Counts, the host, and what the engine can do."""
        engine = self._gateway.engine
        settings = self._gateway.settings
        states = [record.state for record in engine.containers.newest_first()]
        running = sum(state in RUNNING_STATES for state in states)
        paused = states.count(State.PAUSED)
        nodes = [entry.record for entry in engine.nodes.values()]
        node = max(nodes, key=lambda each: each.seen_ns) if nodes else NodeRecord(id="")
        body: dict[str, Any] = {
            "ID": node.id or settings.node_id,
            "Containers": len(states),
            "ContainersRunning": running - paused,
            "ContainersPaused": paused,
            "ContainersStopped": len(states) - running,
            "Images": len(engine.images.all()),
            "Driver": "overlay2",
            "DriverStatus": [
                ["Backing Filesystem", _EXT.get(node.filesystem, node.filesystem)],
                ["Supports d_type", "true"],
                ["Native Overlay Diff", "true"],
            ],
            "SystemStatus": None,
            "Plugins": {
                "Volume": ["local"],
                "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
                "Authorization": None,
                "Log": ["json-file", "local", "none"],
            },
            "MemoryLimit": True,
            "SwapLimit": True,
            "CpuCfsPeriod": True,
            "CpuCfsQuota": True,
            "CPUShares": True,
            "CPUSet": True,
            "PidsLimit": True,
            "OomKillDisable": node.cgroup_version == "1",
            "IPv4Forwarding": True,
            "Debug": settings.log_level == "debug",
            "NFd": 0,
            "NGoroutines": 0,
            "SystemTime": datetime.datetime.now(datetime.UTC).isoformat(),
            "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": node.cgroup_version or "2",
            "NEventsListener": 0,
            "KernelVersion": node.kernel or self._platform.release,
            "OperatingSystem": node.operating_system,
            "OSVersion": node.os_version,
            "OSType": "linux",
            "Architecture": node.architecture or self._platform.machine,
            "NCPU": node.cpus,
            "MemTotal": node.memory,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": {
                "IndexConfigs": _index_configs(settings),
                "InsecureRegistryCIDRs": [
                    "127.0.0.0/8",
                    *(entry for entry in settings.insecure_registries if "/" in entry),
                ],
                "Mirrors": settings.registry_mirrors,
                "AllowNondistributableArtifactsCIDRs": [],
                "AllowNondistributableArtifactsHostnames": [],
            },
            "GenericResources": None,
            "DockerRootDir": node.state_dir or str(settings.state_dir),
            "HttpProxy": "",
            "HttpsProxy": "",
            "NoProxy": "",
            "Name": node.name or self._platform.node,
            "Labels": [],
            "ExperimentalBuild": False,
            "ServerVersion": ENGINE_VERSION,
            "Runtimes": {DEFAULT_RUNTIME: {"path": "mooring-oci"}},
            "DefaultRuntime": DEFAULT_RUNTIME,
            "Swarm": {
                "NodeID": "",
                "NodeAddr": "",
                "LocalNodeState": "inactive",
                "ControlAvailable": False,
                "Error": "",
                "RemoteManagers": None,
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": "docker-init",
            "ContainerdCommit": {"ID": "", "Expected": ""},
            "RuncCommit": {"ID": "", "Expected": ""},
            "InitCommit": {"ID": "", "Expected": ""},
            "SecurityOptions": node.security_options or ["name=seccomp,profile=builtin"],
            "CDISpecDirs": [],
            "Warnings": node.warnings,
        }
        return json_reply(body)


def _index_configs(settings: Settings) -> dict[str, Any]:
    """Docker Hub and the registries that are named as insecure."""
    hub = {
        "Name": "docker.io",
        "Mirrors": settings.registry_mirrors,
        "Secure": True,
        "Official": True,
    }
    others = {
        entry: {"Name": entry, "Mirrors": [], "Secure": False, "Official": False}
        for entry in settings.insecure_registries
        if "/" not in entry
    }
    return {"docker.io": hub, **others}
