"""What the API has and Mooring does not have yet: refused by name, never half done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.kit.errors import NotSupported, Unavailable

_NOT_YET: tuple[tuple[str, str, str], ...] = (
    ("POST", "/containers/{id}/checkpoints", "checkpointing a container"),
    ("GET", "/containers/{id}/checkpoints", "checkpointing a container"),
    ("GET", "/images/{name}/attestations", "attestations of images"),
    ("POST", "/session", "BuildKit sessions"),
    ("POST", "/grpc", "BuildKit sessions"),
    ("PUT", "/volumes/{name}", "cluster volumes"),
    ("GET", "/plugins/privileges", "plugins"),
    ("GET", "/plugins/{name}/json", "plugins"),
    ("DELETE", "/plugins/{name}", "plugins"),
    *(
        ("POST", f"/plugins/{path}", "plugins")
        for path in ("pull", "create", "{name}/enable", "{name}/disable", "{name}/upgrade",
                     "{name}/push", "{name}/set")
    ),
)  # fmt: skip

_SWARM: tuple[tuple[str, str], ...] = (
    ("GET", "/swarm"),
    ("POST", "/swarm/update"),
    ("POST", "/swarm/unlock"),
    ("POST", "/swarm/leave"),
    ("GET", "/swarm/unlockkey"),
    *(
        row
        for kind in ("nodes", "services", "secrets", "configs")
        for row in (
            ("GET", f"/{kind}"),
            ("GET", f"/{kind}/{{id}}"),
            ("POST", f"/{kind}/create"),
            ("POST", f"/{kind}/{{id}}/update"),
            ("DELETE", f"/{kind}/{{id}}"),
        )
        if row != ("POST", "/nodes/create")
    ),
    ("GET", "/services/{id}/logs"),
    ("GET", "/tasks"),
    ("GET", "/tasks/{id}"),
    ("GET", "/tasks/{id}/logs"),
)
_NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
    "to connect this node to swarm and try again."
)


def routes() -> list[Route]:
    """See Router."""
    found = [Route(method, path, Kind.STREAM, _refusal(what)) for method, path, what in _NOT_YET]
    found += [Route("POST", f"/swarm/{verb}", Kind.STREAM, _refusal("swarm mode"))
              for verb in ("init", "join")]  # fmt: skip
    found += [Route(method, path, Kind.STREAM, _no_swarm) for method, path in _SWARM]
    return found


def _refusal(what: str) -> Callable[[Request], Awaitable[Reply]]:
    async def refuse(request: Request) -> Reply:
        raise NotSupported(f"{what} is not supported yet")

    return refuse


async def _no_swarm(request: Request) -> Reply:
    raise Unavailable(_NO_SWARM)
