"""FROM of an image that is not here: pulled by this host's registry service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from mooring.kit import references, subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.image import ImageRecord
from mooring.kit.models.registry import (
    CancelTransfer,
    Pulled,
    PullImage,
    RegistryAuth,
    TransferProgress,
)
from mooring.kit.nats_protocol import Msg

from .images import ImageIndex
from .output import Output

_LONGEST = 86400.0
"""Seconds that a pull may take, as long as something moves."""
_ARRIVAL = 5.0
_HUB = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")


async def pull(
    bus: Bus,
    node: str,
    index: ImageIndex,
    name: str,
    platform: str,
    auth: Mapping[str, Mapping[str, str]],
    output: Output,
) -> ImageRecord:
    """Pull an image and pass on what that says; EngineError."""
    reference = references.parse(name).tagged()
    message = PullImage(
        request_id=bus.new_id(),
        reference=str(reference),
        platform=platform,
        auth=credentials(reference.domain, auth),
        progress=bus.client.new_inbox(),
        known=index.known(reference.name),
    )

    def say(received: Msg) -> None:
        _say(output, TransferProgress.unpack(received.data).messages)

    subscription = bus.client.subscribe(message.progress, say)
    subject = subjects.runtime(node, subjects.RUNTIME_IMAGE_PULL)
    try:
        done = await bus.request(subject, message, Pulled, timeout=_LONGEST)
    except asyncio.CancelledError:
        cancelling = subjects.runtime(node, subjects.RUNTIME_TRANSFER_CANCEL)
        with suppress(EngineError):
            await bus.request(cancelling, CancelTransfer(transfer=message.request_id), Done)
        raise
    finally:
        bus.client.unsubscribe(subscription)
    _say(output, done.messages)
    image_id = done.images.get(str(reference), "")
    found = await index.arrived(image_id, _ARRIVAL) if image_id else index.find(name)
    if found is None:
        raise Unavailable(f"image {name} was pulled and is not there")
    return found


def credentials(domain: str, auth: Mapping[str, Mapping[str, str]]) -> RegistryAuth:
    """What the client knows for a registry."""
    names = _HUB if domain == references.DEFAULT_DOMAIN else (domain, f"https://{domain}")
    for name in names:
        if (entry := auth.get(name)) is not None:
            return RegistryAuth.model_validate(dict(entry))
    return RegistryAuth()


def _say(output: Output, messages: list[dict[str, object]]) -> None:
    lines = (json.dumps(each, separators=(",", ":")) + "\r\n" for each in messages)
    if text := "".join(lines):
        output.raw(text.encode())
