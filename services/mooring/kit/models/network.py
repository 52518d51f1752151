"""Networks, the endpoints that containers have on them, and the commands about both."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from .base import Docker, Done, Model, Request
from .event import Event
from .port import PublishedPort

# --- what was asked for ---


class EndpointAddresses(Docker):
    """`IPAMConfig` of an endpoint."""

    ipv4_address: str = Field(default="", alias="IPv4Address")
    ipv6_address: str = Field(default="", alias="IPv6Address")
    link_local_ips: list[str] | None = Field(default=None, alias="LinkLocalIPs")


class EndpointSettings(Docker):
    """`EndpointSettings` of the Docker API, as far as it is asked for and not found out."""

    ipam_config: EndpointAddresses | None = Field(default=None, alias="IPAMConfig")
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0


class IpamPool(Docker):
    """One element of `IPAM.Config`."""

    subnet: str = ""
    ip_range: str = Field(default="", alias="IPRange")
    gateway: str = ""
    aux_addresses: dict[str, str] | None = Field(default=None, alias="AuxiliaryAddresses")


# --- what is ---


class Endpoint(Model):
    """A container's connection to one network."""

    network_id: str = ""
    endpoint_id: str = ""
    driver: str = ""
    interface: str = ""
    """In the container: eth0."""
    link: str = ""
    """The host's end, if it has one."""
    gateway: str = ""
    ip_address: str = ""
    ip_prefix_len: int = 0
    ipv6_gateway: str = ""
    global_ipv6_address: str = ""
    global_ipv6_prefix_len: int = 0
    mac_address: str = ""
    aliases: list[str] = []
    """As asked for."""
    dns_names: list[str] = []
    """All names by which it is found on this network: its name, aliases, short id, host name."""
    links: dict[str, str] = {}
    """Private names of other containers: alias to the container as the user named it."""
    internal: bool = False
    """No way out leads through it."""
    gw_priority: int = 0


class NetworkState(Model):
    """What the host set up for a container's network; empty while it does not run."""

    sandbox_id: str = ""
    endpoints: dict[str, Endpoint] = {}
    """By network name, in the order of their interfaces."""
    dns: bool = False
    """It is on a user-defined network, so names are served at 127.0.0.11."""
    gateway4: str = ""
    gateway6: str = ""
    """The networks that the default routes lead through, where ports are published."""
    ports: dict[str, list[PublishedPort]] = {}
    """Published ports by `80/tcp`; nothing for one that is exposed only."""


class Rewiring(Model):
    """A change of a running container's networks: claimed in its record, then carried out."""

    settings: EndpointSettings | None = None
    """What to connect with; None to disconnect."""
    network_id: str = ""
    force: bool = False
    owner: str = ""
    command: str = ""


class Progress(StrEnum):
    """Where a network is: only an active one is shown."""

    CREATING = "creating"
    ACTIVE = "active"
    REMOVING = "removing"
    REMOVED = "removed"
    """A tombstone: kept for a minute, until its events are stored for certain."""


class NetworkRecord(Model):
    """All that is known of a network. Only the lifecycle manager writes it."""

    version: int = 1
    id: str
    name: str
    node: str = ""
    """The host whose network it is; empty for one that every host has."""
    created_ns: int = 0
    driver: str = "bridge"
    scope: str = "local"
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] = {}
    ipam: list[IpamPool] = []
    """IPv4 first; the subnets are chosen by the time it is active."""
    configured: bool = False
    """The user has chosen subnets: only then may endpoints ask for addresses."""
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    interface: str = ""
    """The bridge, or the parent link of macvlan and ipvlan."""

    progress: Progress = Progress.ACTIVE
    owner: str = ""
    """The lifecycle replica that is at it while it is created or removed."""
    deadline_ns: int = 0
    command_id: str = ""
    event_serial: int = 0
    outbox: list[Event] = []


class Claimed(Model):
    """What one network has for itself."""

    name: str
    subnets: list[str] = []
    interface: str = ""
    owner: str = ""
    claimed_ns: int = 0


class NetworkClaims(Model):
    """Names, subnets and links of all networks by network id: one record, so claims are atomic."""

    version: int = 1
    claims: dict[str, Claimed] = {}


# --- commands to the lifecycle manager ---


class CreateNetwork(Request):
    """Create a network; Conflict for the name, Forbidden for an address pool."""

    name: str
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = None
    enable_ipv6: bool | None = None
    internal: bool = False
    attachable: bool = False
    ipam_driver: str = ""
    ipam_options: dict[str, str] = {}
    ipam: list[IpamPool] = []
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class NetworkCreated(Done):
    network_id: str
    warning: str = ""


class NetworkRequest(Request):
    """A command about one network, named by its id, a prefix of that, or its name."""

    network: str


class ConnectNetwork(NetworkRequest):
    """Connect a container. Done.revision is of the bucket of containers."""

    container: str
    settings: EndpointSettings = Field(default_factory=EndpointSettings)


class DisconnectNetwork(NetworkRequest):
    """Disconnect a container; force: even one that no longer exists."""

    container: str
    force: bool = False


class PruneNetworks(Request):
    """Remove what no container uses (until: Unix ns; labels as `k` or `k=v`)."""

    until_ns: int | None = None
    labels: list[str] = []
    labels_not: list[str] = []


class NetworksPruned(Done):
    deleted: list[str] = []


# --- commands to the runtime worker ---


class HostNetwork(Request):
    """Make a network of this host, or see that it is there; or remove it (`network.remove`)."""

    record: NetworkRecord


class HostSubnets(Done):
    """Every subnet that this host has a route to, so that none is chosen twice."""

    subnets: list[str] = []


class HostConnect(Request):
    """Connect a run to one more network; answered again if it is connected already."""

    id: str
    run: int
    network: str
    """Its name."""
    command: str = ""
    """Of whoever wants it; several may carry it out (Rewiring), and it is done once."""
    name: str = ""
    """The container's, which others on the network find it by."""
    hostname: str = ""
    settings: EndpointSettings = Field(default_factory=EndpointSettings)


class HostDisconnect(Request):
    """Disconnect a run from a network; answered again if it is not connected."""

    id: str
    run: int
    network: str
    command: str = ""


class HostRename(Request):
    """A run's container has another name, by which it is found on its networks from now on."""

    id: str
    run: int
    name: str


class HostWired(Done):
    """All of a run's network after a connect or disconnect."""

    network: NetworkState


# --- facts ---


class BridgeReady(Model):
    """The default bridge of a host is there: what its record says of it."""

    node: str
    subnet: str
    gateway: str
    mtu: int = 0
    interface: str = ""
    time_ns: int = 0
