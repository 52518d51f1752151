"""The query and headers of POST /build, as the message to a builder."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from mooring.gateway.http.request import Request
from mooring.kit import references
from mooring.kit.errors import InvalidParameter, NotSupported
from mooring.kit.models.build import BuildLimits, BuildOptions
from mooring.kit.models.container import Ulimit

from . import query

_NO_BUILDKIT = (
    "BuildKit is not supported by this engine: it has the classic builder. "
    "Set DOCKER_BUILDKIT=0 (for docker compose and the docker CLI) to use it"
)
_MIN_MEMORY = 6 << 20


def build_options(request: Request) -> BuildOptions:
    """What a client asks for; InvalidParameter, NotSupported."""
    if request.get("version", "1") not in ("", "1") or request.get("session"):
        raise InvalidParameter(_NO_BUILDKIT)
    for name in ("outputs", "pushRemote"):
        if request.get(name):
            raise InvalidParameter(f"the build option {name} needs BuildKit. {_NO_BUILDKIT}")
    if query.flag(request, "squash"):
        raise NotSupported(
            "the build option squash is not supported: "
            "use a multi-stage build to get an image of few layers"
        )
    if request.get("isolation") not in ("", "default"):
        raise InvalidParameter(f"invalid isolation '{request.get('isolation')}' on linux")
    return BuildOptions(
        tags=_tags(request),
        dockerfile=request.get("dockerfile"),
        remote=request.get("remote"),
        target=request.get("target"),
        platform=request.get("platform"),
        quiet=query.flag(request, "q"),
        no_cache=query.flag(request, "nocache"),
        cache_from=_strings(request, "cachefrom", "error reading cache-from"),
        pull=query.flag(request, "pull"),
        remove=query.flag(request, "rm", True),
        force_remove=query.flag(request, "forcerm"),
        arguments=_arguments(request),
        labels=_labels(request),
        network_mode=request.get("networkmode"),
        extra_hosts=_extra_hosts(request),
        security_opt=_strings(request, "securityopt", "error reading security options"),
        limits=_limits(request),
        registry_auth=_registry_auth(request),
    )


def _tags(request: Request) -> list[str]:
    names: list[str] = []
    for text in request.query.get("t", []):
        if not text:
            continue
        reference = references.parse(text)
        if reference.digest:
            raise InvalidParameter("build tag cannot contain a digest")
        full = str(reference.tagged())
        if full not in names:
            names.append(full)
    return names


def _json(request: Request, name: str, problem: str) -> Any:
    text = request.get(name)
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError as exc:
        raise InvalidParameter(f"{problem}: {exc}") from exc


def _strings(request: Request, name: str, problem: str) -> list[str]:
    value = _json(request, name, problem)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidParameter(f"{problem}: {name} is no list of strings")
    return value


def _arguments(request: Request) -> dict[str, str | None]:
    value = _json(request, "buildargs", "error reading build args")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        item is None or isinstance(item, str) for item in value.values()
    ):
        raise InvalidParameter("error reading build args: buildargs is no object of strings")
    return value


def _labels(request: Request) -> dict[str, str]:
    value = _json(request, "labels", "error reading labels")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidParameter("error reading labels: labels is no object of strings")
    return value


def _extra_hosts(request: Request) -> list[str]:
    return [
        host for text in request.query.get("extrahosts", []) for host in text.split(",") if host
    ]


def _limits(request: Request) -> BuildLimits:
    def number(name: str) -> int:
        return query.integer(request, name, 0) or 0

    ulimits = _json(request, "ulimits", "error reading ulimit settings")
    if ulimits is not None and not (
        isinstance(ulimits, list) and all(isinstance(item, dict) for item in ulimits)
    ):
        raise InvalidParameter("error reading ulimit settings: ulimits is no list of objects")
    limits = BuildLimits(
        memory=number("memory"),
        memory_swap=number("memswap"),
        cpu_shares=number("cpushares"),
        cpuset_cpus=request.get("cpusetcpus"),
        cpuset_mems=request.get("cpusetmems"),
        cpu_period=number("cpuperiod"),
        cpu_quota=number("cpuquota"),
        shm_size=number("shmsize"),
        ulimits=[Ulimit.model_validate(item) for item in ulimits or []],
        cgroup_parent=request.get("cgroupparent"),
    )
    if 0 < limits.memory < _MIN_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    return limits


def _registry_auth(request: Request) -> dict[str, dict[str, str]]:
    """X-Registry-Config: base64url of {registry: {username, password, …}}; unreadable is none."""
    text = request.head.headers.get("x-registry-config", "")
    if not text:
        return {}
    try:
        value = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error):
        return {}
    if not isinstance(value, dict):
        return {}
    return {
        name: {key: item for key, item in entry.items() if isinstance(item, str)}
        for name, entry in value.items()
        if isinstance(entry, dict)
    }
