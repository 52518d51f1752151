"""What needs a registry: pull, push, search, distribution, logging in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from mooring.gateway.engine import Engine
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import ResponseStream
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.decode import json_body
from mooring.kit import references, subjects
from mooring.kit.errors import EngineError, Forbidden, InvalidParameter
from mooring.kit.models.base import Done
from mooring.kit.models.base import Request as Message
from mooring.kit.models.image import ImageRecord
from mooring.kit.models.registry import (
    AuthChecked,
    CancelTransfer,
    CheckAuth,
    DistributionInspected,
    InspectDistribution,
    Pulled,
    PullImage,
    Pushed,
    PushImage,
    RegistryAuth,
    SearchRegistry,
    SearchResult,
    SearchResults,
    TransferProgress,
)
from mooring.kit.nats_protocol import Msg

R = TypeVar("R", bound=Done)
Line = dict[str, Any]

_FOREVER = 7 * 86400.0
"""Seconds that a transfer may take."""
_ASKING = 300.0
"""Seconds for questions to a registry, with all attempts."""
_HEADER_LIMIT = 64 << 10
_MOUNT_SOURCES = 4
_REPEATED = ("Retrying", "Waiting")


class TransferRoutes:
    """The rows of the API for which a host talks to a registry."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router. `POST /images/create` leads to `pull` if it names an image."""
        return [
            Route("POST", "/images/{name}/push", Kind.STREAM, self.push),
            Route("GET", "/images/search", Kind.STREAM, self.search),
            Route("GET", "/distribution/{name}/json", Kind.STREAM, self.distribution),
            Route("POST", "/auth", Kind.STREAM, self.auth),
        ]

    async def pull(self, request: Request) -> Reply | None:
        """Pull one reference, or all tags of a repository."""
        engine = self._gateway.engine
        reference = _pulled_reference(request.get("fromImage"), request.get("tag"))
        views = engine.images
        known = {
            entry.record.reference: entry.record.image_id
            for entry in views.references.values()
            if entry.record.reference.startswith(reference.name)
        }
        message = PullImage(
            reference=str(reference),
            platform=request.get("platform"),
            auth=registry_auth(request),
            known=known,
        )

        def arrived(done: Pulled) -> bool:
            return all(
                views.names(name) == image_id and views.get(image_id) is not None
                for name, image_id in done.images.items()
            )

        async def wait(done: Pulled) -> None:
            await views.until(lambda: arrived(done))

        subject = subjects.runtime(engine.node().id, subjects.RUNTIME_IMAGE_PULL)
        return await self._transfer(request, subject, message, Pulled, wait)

    async def push(self, request: Request) -> Reply | None:
        """Push one tag, or all tags of a repository."""
        if request.get("platform"):
            raise InvalidParameter("pushing an image for a platform is not supported")
        engine = self._gateway.engine
        auth = registry_auth(request)
        if "x-registry-auth" not in request.head.headers:
            auth = await _auth_of_body(request, self._gateway.settings.max_json_body)
        reference = references.parse(request.name)
        if reference.digest:
            raise InvalidParameter("cannot push a digest reference")
        tag = request.get("tag") or reference.tag
        images = _tagged(engine, reference, tag)
        stream = request.stream(JSON)
        named = reference._replace(tag=tag)
        await stream.write(_line({"status": f"The push refers to repository [{named.name}]"}))
        if not images:
            shown = named.familiar()
            words = f"An image does not exist locally with the tag: {reference.familiar_name}"
            any_tag = bool(tag) and bool(_tagged(engine, reference, ""))
            await stream.write(_error(f"tag does not exist: {shown}" if any_tag else words))
            stream.end()
            return None
        message = PushImage(
            name=reference.name,
            images=images,
            auth=auth,
            sources=_mount_sources(engine, reference, images),
        )
        subject = subjects.runtime(engine.node().id, subjects.RUNTIME_IMAGE_PUSH)
        return await self._transfer(request, subject, message, Pushed, _nothing, stream)

    async def search(self, request: Request) -> Reply:
        """Look for repositories in an index."""
        given = query.filters(request, frozenset({"is-automated", "is-official", "stars"}))
        text = request.get("limit")
        limit = query.integer(request, "limit") or 25 if text else 25
        if not 1 <= limit <= 100:
            raise InvalidParameter(f"Limit {limit} is outside the range of [1, 100]")
        wanted = _search_filter(given)
        message = SearchRegistry(term=request.get("term"), limit=limit, auth=registry_auth(request))
        found = await self._ask(subjects.RUNTIME_REGISTRY_SEARCH, message, SearchResults)
        return json_reply([result.model_dump() for result in found.results if wanted(result)])

    async def distribution(self, request: Request) -> Reply:
        """What a registry has under a name."""
        reference = references.parse(request.name).tagged()
        message = InspectDistribution(reference=str(reference), auth=registry_auth(request))
        found = await self._ask(subjects.RUNTIME_REGISTRY_INSPECT, message, DistributionInspected)
        return json_reply({"Descriptor": found.descriptor, "Platforms": found.platforms})

    async def auth(self, request: Request) -> Reply:
        """Whether credentials are good; some registries give a token for them."""
        body = await json_body(request, self._gateway.settings.max_json_body)
        message = CheckAuth(auth=_auth_of(body))
        found = await self._ask(subjects.RUNTIME_REGISTRY_AUTH, message, AuthChecked)
        return json_reply({"IdentityToken": found.identity_token, "Status": found.status})

    async def _ask(self, verb: str, message: Message, reply: type[R]) -> R:
        engine = self._gateway.engine
        subject = subjects.runtime(engine.node().id, verb)
        silence = engine.settings.request_timeout
        return await engine.bus.request(subject, message, reply, timeout=_ASKING, silence=silence)

    async def _transfer(
        self,
        request: Request,
        subject: str,
        message: PullImage | PushImage,
        reply: type[R],
        settle: Callable[[R], Any],
        stream: ResponseStream | None = None,
    ) -> Reply | None:
        """Have it done and show how it goes; what fails before the first line is an HTTP error."""
        bus = self._gateway.engine.bus
        async with progress_lines(self._gateway.engine) as (inbox, lines):
            message = message.model_copy(update={"request_id": bus.new_id(), "progress": inbox})
            asking = asyncio.create_task(
                bus.request(
                    subject,
                    message,
                    reply,
                    timeout=_FOREVER,
                    silence=self._gateway.settings.request_timeout,
                ),
                name="transfer",
            )
            asking.add_done_callback(lambda _: lines.put_nowait(None))
            try:
                shown: set[bytes] = set()
                while (line := await lines.get()) is not None:
                    data = _line(line)
                    # A worker that was restarted begins its tale again.
                    again = data in shown and "progress" not in line
                    if not again or line.get("status", "").startswith(_REPEATED):
                        shown.add(data)
                        stream = stream or request.stream(JSON)
                        await stream.write(data)
                try:
                    done = await asking
                    await settle(done)
                except EngineError as exc:
                    if stream is None:
                        raise
                    await stream.write(_error(exc.message))
                    stream.end()
                    return None
                stream = stream or request.stream(JSON)
                await stream.write(b"".join(map(_line, getattr(done, "messages", []))))
                stream.end()
                return None
            finally:
                if not asking.done():
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
                    verb = subjects.RUNTIME_TRANSFER_CANCEL
                    cancel = CancelTransfer(transfer=message.request_id)
                    target = subjects.runtime(self._gateway.engine.node().id, verb)
                    # The client is gone; this must not hold up the end of its request.
                    self._gateway.engine.background(bus.request(target, cancel, Done))


@contextlib.asynccontextmanager
async def progress_lines(
    engine: Engine,
) -> AsyncGenerator[tuple[str, asyncio.Queue[Line | None]], None]:
    """A subject for `TransferProgress`, and what comes there; a None is for the user to put."""
    client = engine.bus.client
    lines: asyncio.Queue[Line | None] = asyncio.Queue()
    inbox = client.new_inbox()

    def receive(message: Msg) -> None:
        for line in TransferProgress.unpack(message.data).messages:
            lines.put_nowait(line)

    subscription = client.subscribe(inbox, receive)
    try:
        yield inbox, lines
    finally:
        client.unsubscribe(subscription)


async def _nothing(done: Any) -> None:
    return None


def _line(message: Line) -> bytes:
    return dumps(message) + b"\r\n"


def _error(message: str) -> bytes:
    return _line({"errorDetail": {"message": message}, "error": message})


def registry_auth(request: Request) -> RegistryAuth:
    """The credentials of `X-Registry-Auth`: none if it is missing, empty or says nothing we know.

    Docker ignores what it cannot decode as well; a registry that wants credentials will say so.
    """
    text = request.head.headers.get("x-registry-auth", "")
    if not text or len(text) > _HEADER_LIMIT:
        return RegistryAuth()
    try:
        # Both alphabets and any padding are sent in practice.
        plain = text.rstrip("=").replace("+", "-").replace("/", "_")
        value = json.loads(base64.urlsafe_b64decode(plain + "=" * (-len(plain) % 4)))
        return _auth_of(value)
    except (binascii.Error, ValueError, RecursionError, InvalidParameter):
        return RegistryAuth()


def _auth_of(value: Any) -> RegistryAuth:
    if isinstance(value, dict):
        # As Go's decoder does: any case, and null is as good as nothing.
        value = {str(name).lower(): given for name, given in value.items() if given is not None}
    try:
        return RegistryAuth.model_validate(value or {})
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidParameter(f"invalid credentials: {where}: {first['msg']}") from None


async def _auth_of_body(request: Request, limit: int) -> RegistryAuth:
    """Credentials as clients sent them before there was a header."""
    try:
        return _auth_of(json.loads(await request.body(limit)))
    except (ValueError, RecursionError):
        raise InvalidParameter("Bad parameters and missing X-Registry-Auth: EOF") from None


def _pulled_reference(image: str, tag: str) -> references.Reference:
    """What `fromImage` and `tag` name together; without a tag all of the repository."""
    reference = references.parse(image)
    if reference.familiar_name == "scratch":
        raise Forbidden("'scratch' is a reserved name")
    if not tag:
        return reference._replace(tag="") if reference.digest else reference
    if ":" in tag:
        named = references.parse(f"{reference.name}@{tag}")
    else:
        named = references.parse(f"{reference.name}:{tag}")
    return named


def _tagged(engine: Engine, reference: references.Reference, tag: str) -> dict[str, ImageRecord]:
    """The images of a repository by tag; of one tag only, if it is given."""
    found: dict[str, ImageRecord] = {}
    for entry in engine.images.references.values():
        record = entry.record
        each = references.parse(record.reference)
        if each.name == reference.name and each.tag and tag in ("", each.tag):
            image = engine.images.get(record.image_id)
            if image is not None:
                found[each.tag] = image
    return dict(sorted(found.items()))


def _mount_sources(
    engine: Engine, target: references.Reference, images: dict[str, ImageRecord]
) -> list[str]:
    """Repositories of the same registry that have layers of these images, by what we know."""
    layers = {layer.diff_id for image in images.values() for layer in image.layers}
    found: dict[str, None] = {}
    for entry in engine.images.references.values():
        each = references.parse(entry.record.reference)
        if not each.digest or each.domain != target.domain or each.path == target.path:
            continue
        image = engine.images.get(entry.record.image_id)
        if image is not None and layers.intersection(layer.diff_id for layer in image.layers):
            found[each.path] = None
    return sorted(found)[:_MOUNT_SOURCES]


def _search_filter(given: query.Filters) -> Callable[[SearchResult], bool]:
    official = query.boolean_filter(given, "is-official") if "is-official" in given else None
    automated = query.boolean_filter(given, "is-automated") if "is-automated" in given else None
    stars = 0
    for text in given.get("stars", []):
        if not text.isdecimal():
            raise InvalidParameter(f"Invalid filter 'stars={text}'")
        stars = max(stars, int(text))

    def wanted(result: SearchResult) -> bool:
        return (
            official in (None, result.is_official)
            and automated in (None, result.is_automated)
            and result.star_count >= stars
        )

    return wanted
