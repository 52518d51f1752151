"""Containers: Docker's Config and HostConfig as given, and the record that the lifecycle keeps."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from .base import Docker, Done, Model, Request
from .event import Event as Event
from .network import Endpoint as Endpoint
from .network import EndpointSettings, Rewiring
from .network import NetworkState as NetworkState


class HealthConfig(Docker):
    """HEALTHCHECK; durations in nanoseconds, 0 means inherited or the default."""

    test: list[str] = []
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0


class ContainerConfig(Docker):
    """`Config` of the Docker API; in a record it is already merged with the image's."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class RestartPolicy(Docker):
    """`no` (or empty), `always`, `unless-stopped`, `on-failure`."""

    name: str = ""
    maximum_retry_count: int = 0


class LogConfig(Docker):
    type: str = ""
    config: dict[str, str] | None = None


class Ulimit(Docker):
    name: str = ""
    soft: int = 0
    hard: int = 0


class DeviceMapping(Docker):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = "rwm"


class BlkioDevice(Docker):
    path: str = ""
    rate: int = 0
    weight: int = 0


class PortBinding(Docker):
    host_ip: str = ""
    host_port: str = ""


class Mount(Docker):
    """One element of HostConfig.Mounts."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: dict[str, Any] | None = None
    volume_options: dict[str, Any] | None = None
    tmpfs_options: dict[str, Any] | None = None
    image_options: dict[str, Any] | None = None


class HostConfig(Docker):
    """`HostConfig` of the Docker API. Sizes in bytes, CPU periods and quotas in microseconds."""

    binds: list[str] | None = None
    container_id_file: str = Field(default="", alias="ContainerIDFile")
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    mounts: list[Mount] | None = None
    console_size: list[int] | None = None
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = Field(default="", alias="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[BlkioDevice] | None = None
    blkio_device_read_bps: list[BlkioDevice] | None = None
    blkio_device_write_bps: list[BlkioDevice] | None = None
    blkio_device_read_iops: list[BlkioDevice] | None = Field(
        default=None, alias="BlkioDeviceReadIOps"
    )
    blkio_device_write_iops: list[BlkioDevice] | None = Field(
        default=None, alias="BlkioDeviceWriteIOps"
    )
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[dict[str, Any]] | None = None
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class State(StrEnum):
    """Where a container is; see lifecycle/states.py for what may follow what."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"
    REMOVED = "removed"
    """A tombstone: kept for a minute, so that whoever waits for the removal sees it."""


class MountPoint(Model):
    """One mount of a container: what `docker inspect` shows, and what its host needs besides."""

    type: str = "bind"
    name: str = ""
    source: str = ""
    destination: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""

    options: list[str] = []
    """As the OCI runtime takes them."""
    hidden: bool = False
    """Not shown by inspect: `--tmpfs`."""
    create_source: bool = True
    """A missing source of a bind is made."""
    anonymous: bool = False
    """A volume that nobody named: it goes with its container if that is asked for."""
    nocopy: bool = False
    subpath: str = ""
    image_id: str = ""


class HealthResult(Model):
    start_ns: int = 0
    end_ns: int = 0
    exit_code: int = 0
    output: str = ""


class Health(Model):
    status: str = "starting"
    failing_streak: int = 0
    log: list[HealthResult] = []


class ContainerRecord(Model):
    """All that is known of a container. Only the lifecycle manager writes it. Times: ns, Unix."""

    version: int = 1
    id: str
    name: str
    """Without the leading slash."""
    node: str
    created_ns: int
    image: str
    """The reference as the user gave it."""
    image_id: str = ""
    """`sha256:…`, the digest of the image's config."""
    platform: str = "linux"
    config: ContainerConfig = ContainerConfig()
    host_config: HostConfig = HostConfig()
    networking: dict[str, EndpointSettings] = {}
    """What was asked for of each network, by its name."""
    disconnected: bool = False
    """It has been disconnected from the last of them, and has none until it is connected again."""
    rewiring: dict[str, Rewiring] = {}
    """Connects and disconnects of a running container that are not carried out yet."""
    path: str = ""
    args: list[str] = []
    mounts: list[MountPoint] = []

    state: State = State.CREATED
    run: int = 0
    """How many times it was started; a fact of an older run changes nothing."""
    pid: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    oom_kills: int = 0
    """How many times in this run, as far as was told."""
    error: str = ""
    restart_count: int = 0
    stopped_by_user: bool = False
    network: NetworkState = Field(default_factory=NetworkState)
    health: Health | None = None

    owner: str = ""
    """The lifecycle replica that holds a transition (starting, stopping, removing)."""
    deadline_ns: int = 0
    """When another replica may take the transition over."""
    command_id: str = ""
    """The request that made the last change, so that its repetition is recognised."""
    resume_state: State | None = None
    """What a transition goes back to when the host refuses."""
    event_serial: int = 0
    """How many events this container has had."""
    outbox: list[Event] = []
    """The events of the last change, published after it; published again after a crash."""
    name_revision: int = 0
    """The KV revision of the name's claim, to give it back with one compare-and-set."""
    stop_signal: int = 0
    """While stopping: the signal that was asked for."""
    remove_volumes: bool = False
    """When it is removed, its anonymous volumes go as well."""
    drop_volumes: list[str] = []
    """In a tombstone: the volumes that are to go."""
    restart_wanted: bool = False
    """A `restart` is under way: once it has exited it is started again, by whoever notices."""


class NameRecord(Model):
    """Who holds a container name. Claimed by creating the key before the container's record."""

    version: int = 1
    id: str
    owner: str = ""
    """The lifecycle replica that claimed it."""
    claimed_ns: int = 0


# --- commands to the lifecycle manager ---


class CreateContainer(Request):
    """Create a container; NotFound for the image, Conflict for the name."""

    name: str = ""
    platform: str = ""
    config: ContainerConfig
    host_config: HostConfig = HostConfig()
    networking: dict[str, EndpointSettings] = {}


class ContainerCreated(Done):
    container_id: str
    warnings: list[str] = []


class ContainerRequest(Request):
    """A command about one container, named by the full id, a prefix or the name."""

    container: str


class StartContainer(ContainerRequest):
    pass


class StopContainer(ContainerRequest):
    """timeout in seconds: None for the container's own, -1 for ever."""

    signal: str = ""
    timeout: int | None = None


class KillContainer(ContainerRequest):
    signal: str = ""


class RenameContainer(ContainerRequest):
    name: str


class RemoveContainer(ContainerRequest):
    force: bool = False
    volumes: bool = False


class NoteContainer(ContainerRequest):
    """Record an event that changes no state: attach, detach, resize, top, export…"""

    action: str
    attributes: dict[str, str] = {}


class PruneContainers(Request):
    """Remove what is stopped and passes the filters (until: Unix ns; labels as `k` or `k=v`)."""

    until_ns: int | None = None
    labels: list[str] = []
    labels_not: list[str] = []


class Pruned(Done):
    deleted: list[str] = []
    space_reclaimed: int = 0
