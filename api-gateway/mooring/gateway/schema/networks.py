"""Networks as Docker describes them, and the bodies of their requests as commands."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from mooring.gateway.schema.decode import fit
from mooring.kit.errors import Forbidden, InvalidParameter, NotSupported
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.network import (
    ConnectNetwork,
    CreateNetwork,
    DisconnectNetwork,
    EndpointSettings,
    IpamPool,
    NetworkRecord,
)

from .texts import rfc3339


def network(record: NetworkRecord, containers: list[ContainerRecord]) -> dict[str, Any]:
    """A network with those of the containers that are on it now."""
    return {
        "Name": record.name,
        "Id": record.id,
        "Created": rfc3339(record.created_ns),
        "Scope": record.scope,
        "Driver": record.driver,
        "EnableIPv4": record.enable_ipv4,
        "EnableIPv6": record.enable_ipv6,
        "IPAM": {
            "Driver": record.ipam_driver,
            "Options": record.ipam_options or None,
            "Config": [_pool(pool) for pool in record.ipam],
        },
        "Internal": record.internal,
        "Attachable": record.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": _endpoints(record, containers),
        "Options": record.options,
        "Labels": record.labels,
    }


def _endpoints(record: NetworkRecord, containers: list[ContainerRecord]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in containers:
        point = each.network.endpoints.get(record.name)
        if point is None or point.network_id != record.id:
            continue
        four, six = point.ip_address, point.global_ipv6_address
        found[each.id] = {
            "Name": each.name,
            "EndpointID": point.endpoint_id,
            "MacAddress": point.mac_address,
            "IPv4Address": f"{four}/{point.ip_prefix_len}" if four else "",
            "IPv6Address": f"{six}/{point.global_ipv6_prefix_len}" if six else "",
        }
    return found


def _pool(pool: IpamPool) -> dict[str, Any]:
    return pool.model_dump(by_alias=True, exclude_defaults=True)


class _Ipam(BaseModel):
    model_config = ConfigDict(extra="ignore")

    Driver: str = ""
    Config: list[IpamPool] | None = None
    Options: dict[str, str] | None = None


class _Reference(BaseModel):
    Network: str = ""


class _Create(BaseModel):
    """The body of `POST /networks/create`."""

    Name: str = ""
    CheckDuplicate: bool = True
    Driver: str = ""
    Scope: str = ""
    Internal: bool = False
    Attachable: bool = False
    Ingress: bool = False
    ConfigOnly: bool = False
    ConfigFrom: _Reference | None = None
    IPAM: _Ipam | None = None
    EnableIPv4: bool | None = None
    EnableIPv6: bool | None = None
    Options: dict[str, str] | None = None
    Labels: dict[str, str] | None = None


class _Connect(BaseModel):
    """The body of `POST /networks/{id}/connect`."""

    Container: str = ""
    EndpointConfig: EndpointSettings | None = None


class _Disconnect(BaseModel):
    """The body of `POST /networks/{id}/disconnect`."""

    Container: str = ""
    Force: bool = False


def create_network(body: dict[str, Any]) -> CreateNetwork:
    """The command of a create request; InvalidParameter, Forbidden, NotSupported.

    CheckDuplicate changes nothing: names are unique, as in Docker since API 1.44.
    """
    given = fit(_Create, body)
    if given.Ingress:
        raise Forbidden("Ingress network can only be global scope network")
    if given.ConfigOnly or (given.ConfigFrom and given.ConfigFrom.Network):
        raise NotSupported("configuration networks (ConfigOnly, ConfigFrom) are not supported")
    ipam = given.IPAM or _Ipam()
    return CreateNetwork(
        name=given.Name,
        driver=given.Driver,
        scope=given.Scope,
        enable_ipv4=given.EnableIPv4,
        enable_ipv6=given.EnableIPv6,
        internal=given.Internal,
        attachable=given.Attachable,
        ipam_driver=ipam.Driver,
        ipam_options=ipam.Options or {},
        ipam=ipam.Config or [],
        options=given.Options or {},
        labels=given.Labels or {},
    )


def connect_network(name: str, body: dict[str, Any]) -> ConnectNetwork:
    """The command of a connect request; InvalidParameter."""
    given = fit(_Connect, body)
    if not given.Container:
        raise InvalidParameter('invalid name or ID supplied: ""')
    settings = given.EndpointConfig or EndpointSettings()
    return ConnectNetwork(network=name, container=given.Container, settings=settings)


def disconnect_network(name: str, body: dict[str, Any]) -> DisconnectNetwork:
    """The command of a disconnect request; InvalidParameter."""
    given = fit(_Disconnect, body)
    if not given.Container:
        raise InvalidParameter('invalid name or ID supplied: ""')
    return DisconnectNetwork(network=name, container=given.Container, force=given.Force)
