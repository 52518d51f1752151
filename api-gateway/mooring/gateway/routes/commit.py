"""`POST /commit`: an image out of a container."""

from __future__ import annotations

from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.decode import fit, json_body
from mooring.kit import references, subjects
from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import ContainerConfig
from mooring.kit.models.image import CommitContainer, ImageCommitted

_SLOW = 3600.0
"""Seconds for copying what a container has written."""


class CommitRoute:
    """The commit of a container, which its host carries out."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [Route("POST", "/commit", Kind.PLAIN, self.commit)]

    async def commit(self, request: Request) -> Reply:
        """Make an image of what a container has written, and tag it."""
        engine = self._gateway.engine
        reference = _reference(request.get("repo"), request.get("tag"))
        body = await json_body(request, self._gateway.settings.max_json_body)
        record = engine.containers.find(request.get("container"))
        message = CommitContainer(
            record=record,
            image=engine.images.get(record.image_id) if record.image_id else None,
            reference=reference,
            author=request.get("author"),
            message=request.get("comment"),
            changes=request.query.get("changes", []),
            config=_config(body),
            # Before API 1.13 there was no such parameter; it is true unless it is said.
            pause=query.flag(request, "pause", True),
        )
        subject = subjects.runtime(record.node, subjects.RUNTIME_COMMIT)
        done = await engine.bus.request(subject, message, ImageCommitted, timeout=_SLOW)
        images = engine.images
        await images.until(
            lambda: (
                images.get(done.image_id) is not None
                and (not reference or images.names(reference) == done.image_id)
            )
        )
        return json_reply({"Id": done.image_id}, 201)


def _reference(repo: str, tag: str) -> str:
    """The full reference that the image gets, or none; InvalidParameter."""
    if not repo:
        return ""
    reference = references.parse(f"{repo}:{tag}" if tag else repo)
    if reference.digest:
        raise InvalidParameter("refusing to create a tag with a digest reference")
    return str(reference.tagged())


def _config(body: dict[str, Any]) -> dict[str, Any] | None:
    """The config that the user gives instead of the container's own, in Docker's keys."""
    if not body:
        return None
    return fit(ContainerConfig, body).model_dump(by_alias=True, mode="json")
