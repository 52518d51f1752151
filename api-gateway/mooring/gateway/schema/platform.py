"""The `platform` that clients name for an image that is here: it has one, which has to be it."""

from __future__ import annotations

import json

from mooring.gateway.http.request import Request
from mooring.kit.errors import InvalidParameter, NotFound
from mooring.kit.models.image import ImageRecord

_KEYS = ("os", "architecture", "variant")


def asked(request: Request) -> tuple[str, str, str] | None:
    """Operating system, architecture and variant (`""`: any), if some were named.

    JSON as the API has it, or `os/architecture/variant`; InvalidParameter.
    """
    text = request.get("platform")
    if not text:
        return None
    if not text.lstrip().startswith("{"):
        parts = [*text.lower().split("/"), "", "", ""]
        return parts[0], parts[1], parts[2]
    try:
        given = json.loads(text)
        found = tuple(str(given.get(key) or "") for key in _KEYS)
    except (ValueError, RecursionError) as exc:
        raise InvalidParameter(f"failed to parse platform: {exc}") from exc
    return found[0], found[1], found[2]


def check(request: Request, image: ImageRecord, shown: str) -> None:
    """NotFound if a platform was named and the image is for another one."""
    wanted = asked(request)
    if wanted is None or is_for(wanted, image.architecture, image.variant):
        return
    raise NotFound(
        f"image with reference {shown} was found but does not provide the specified platform "
        f"({'/'.join(filter(None, wanted))})"
    )


def is_for(wanted: tuple[str, str, str], architecture: str, variant: str = "") -> bool:
    """Whether that is Linux on that architecture; a variant that is not known is any."""
    return (
        wanted[0] in ("", "linux")
        and wanted[1] in ("", architecture)
        and (not variant or wanted[2] in ("", variant))
    )


def go_architecture(machine: str) -> str:
    """What images call a machine, as uname(2) names it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
