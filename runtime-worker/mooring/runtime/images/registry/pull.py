"""One pull: from a reference to an image in the store."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote, urljoin

from mooring.kit import references
from mooring.kit.errors import EngineError, InvalidParameter, NotFound
from mooring.runtime.images import platforms
from mooring.runtime.images.load import config_diff_ids
from mooring.runtime.images.store import chain_ids
from mooring.runtime.images.unpack import BadArchive

from . import manifests
from .challenge import Credentials
from .client import Http, Repository, connect, is_transient, read_all, retried
from .host import Host
from .layers import Layers, Places, Wanted, short
from .manifests import Descriptor, Index, Manifest
from .progress import Message, Say, state, status
from .words import (
    ConnectionFault,
    NoCredentials,
    RegistryError,
    TransferFault,
    pull_error,
)

logger = logging.getLogger(__name__)

_INDEXES = 4
"""Indexes within indexes; more are a circle, or might as well be."""
_TAGS = 10_000
_TAGS_BODY = 4 << 20


class Pull:
    """A pull that is under way."""

    def __init__(self, http: Http, layers: Layers, places: Places, host: Host) -> None:
        self._http, self._layers, self._places, self._host = http, layers, places, host

    async def run(self, args: dict[str, Any]) -> dict[str, Any]:
        """Pull what a PullImage (as JSON) names; EngineError in Docker's words."""
        platforms.parse(args["platform"])
        reference = references.parse(args["reference"])
        auth = Credentials.parse(args["auth"])
        every = not reference.tag and not reference.digest
        shown = reference.familiar()
        try:
            repositories = await connect(self._http, reference, auth, "pull", mirrors=True)
        except (ConnectionFault, RegistryError, TransferFault, NoCredentials) as exc:
            raise pull_error(exc, shown, reference.familiar_name) from exc
        failure: EngineError | None = None
        for repository in repositories:
            try:
                wanted = [reference]
                if every:
                    names = await self._tags(repository)
                    wanted = [reference._replace(tag=name) for name in names]
                return await self._pull(wanted, repository, args, shown)
            except (
                ConnectionFault, RegistryError, TransferFault, NoCredentials, OSError
            ) as exc:  # fmt: skip
                # A mirror that has not got it, or not the right one: the registry itself is next.
                failure = failure or pull_error(exc, shown, reference.familiar_name)
                if not repository.endpoint.mirror:
                    raise pull_error(exc, shown, reference.familiar_name) from exc
                logger.info("mirror %s: %s", repository.endpoint.url, exc)
        raise failure or NotFound(f"nothing to pull for {shown}")

    async def _pull(
        self,
        wanted: list[references.Reference],
        repository: Repository,
        args: dict[str, Any],
        shown: str,
    ) -> dict[str, Any]:
        last: list[Message] = []
        images: dict[str, str] = {}
        revision, newer = 0, False
        for reference in wanted:
            for message in last:
                self._host.say(message)
            image_id, digest, done = await self._one(reference, repository, args["platform"])
            images[str(reference)] = image_id
            revision = max(revision, done)
            newer = newer or args["known"].get(str(reference)) != image_id
            last = [status(f"Digest: {digest}")]
        what = "Downloaded newer image" if newer else "Image is up to date"
        last.append(status(f"Status: {what} for {shown}"))
        return {"messages": last, "images": images, "revision": revision}

    async def _one(
        self, reference: references.Reference, repository: Repository, platform: str
    ) -> tuple[str, str, int]:
        """Pull one tag or digest: the image's id, the digest, the revision of its record."""
        what = reference.digest or reference.tag
        shown = reference.familiar()
        found = await fetch_manifest(repository, what, shown)
        digest = found.digest
        self._host.say(status(f"Pulling from {_remote_name(reference)}", what))
        manifest = await self._for_platform(found, repository, platform, shown)
        raw = await self._config(manifest.config, repository)
        config = _config_json(raw, shown)
        _check_platform(config, platform, shown)
        try:
            diff_ids = config_diff_ids(config)
        except BadArchive as exc:
            raise TransferFault(str(exc)) from exc
        if len(diff_ids) != len(manifest.layers):
            raise TransferFault(
                "invalid manifest, layers length mismatch: expected "
                f"{len(diff_ids)}, got {len(manifest.layers)}"
            )
        chains = chain_ids(diff_ids)
        present, known = await self._host.lease(chains, manifest.config.digest)
        if not (known and present.issuperset(chains)):
            try:
                await self._make_layers(manifest, diff_ids, chains, present, repository)
            except (OSError, EngineError):
                # The disk is full, it may be: nobody needs what was fetched that badly.
                self._layers.forget(manifest.layers)
                raise
        revision = await self._host.add(
            {
                "id": manifest.config.digest,
                "config": config,
                "chain_ids": chains,
                "blobs": self._keep({manifest.config.digest: raw, manifest.digest: manifest.raw}),
                "manifest": manifest.digest,
                "references": [str(reference), f"{reference.name}@{digest}"],
            }
        )
        # The store has links of its own by now.
        self._layers.forget(manifest.layers)
        return manifest.config.digest, digest, revision

    async def _make_layers(
        self,
        manifest: Manifest,
        diff_ids: list[str],
        chains: list[str],
        present: set[str],
        repository: Repository,
    ) -> None:
        async with AsyncExitStack() as stack:
            tasks: list[asyncio.Task[None]] = []
            below: asyncio.Task[None] | None = None
            for descriptor, chain_id in zip(manifest.layers, chains, strict=True):
                text = "Already exists" if chain_id in present else "Pulling fs layer"
                self._host.say(state(text, short(descriptor.digest)))
            for number, descriptor in enumerate(manifest.layers):
                if chains[number] in present:
                    continue
                wanted = Wanted(
                    descriptor,
                    diff_ids[number],
                    chains[number],
                    tuple(reversed(chains[:number])),
                )
                below = await stack.enter_async_context(
                    self._layers.made.join(
                        wanted.chain_id, self._maker(wanted, repository, below), self._host.say
                    )
                )
                tasks.append(below)
            if tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()

    def _maker(
        self, wanted: Wanted, repository: Repository, below: asyncio.Task[None] | None
    ) -> Any:
        async def make(say: Say) -> None:
            await self._layers.make(wanted, repository, below, say)

        return make

    async def _for_platform(
        self, found: Manifest | Index, repository: Repository, platform: str, shown: str
    ) -> Manifest:
        for _ in range(_INDEXES):
            if isinstance(found, Manifest):
                return found
            entry = manifests.choose(found, platforms.parse(platform))
            found = await fetch_manifest(repository, entry.digest, shown)
        if isinstance(found, Manifest):
            return found
        raise TransferFault(f"the manifest lists of {shown} are nested too deeply")

    async def _config(self, descriptor: Descriptor, repository: Repository) -> bytes:
        if descriptor.size > manifests.CONFIG_LIMIT:
            raise TransferFault(f"image config is larger than {manifests.CONFIG_LIMIT >> 20} MiB")

        async def fetch() -> bytes:
            async with repository.send("GET", f"blobs/{descriptor.digest}") as answer:
                try:
                    return await read_all(answer, max(descriptor.size, 1), "image config")
                except TransferFault:
                    return b""  # Longer than it can be.

        raw: bytes = await patiently(self._http, fetch)
        if manifests.digest_of(raw) != descriptor.digest:
            raise TransferFault(f"image config verification failed for digest {descriptor.digest}")
        return raw

    async def _tags(self, repository: Repository) -> list[str]:
        found: list[str] = []
        path = f"{repository.endpoint.url}/v2/{repository.path}/tags/list"
        while path and len(found) < _TAGS:
            page, path = await self._tags_page(repository, path)
            found += page
        return sorted(set(found))

    async def _tags_page(self, repository: Repository, url: str) -> tuple[list[str], str]:
        async with repository.send("GET", url) as answer:
            raw = await read_all(answer, _TAGS_BODY, "the list of tags")
            following = answer.links["next"]["url"] if "next" in answer.links else None
        try:
            tags = json.loads(raw).get("tags") or []
            names = [references.parse(f"x:{tag}").tag for tag in tags]
        except (ValueError, RecursionError, AttributeError, InvalidParameter) as exc:
            raise TransferFault(f"the registry sent no list of tags: {exc}") from exc
        return names, urljoin(url, str(following)) if following and names else ""

    def _keep(self, blobs: dict[str, bytes]) -> dict[str, str]:
        """Small blobs as files, for the worker to link into the store."""
        found = {}
        for digest, data in blobs.items():
            path = self._places.job / f"{digest[7:]}.json"
            path.write_bytes(data)
            found[digest] = str(path)
        return found


async def patiently(http: Http, action: Any) -> Any:
    """What an action comes to, tried again while that may help."""
    for attempt in range(1, http.patience.attempts + 1):
        try:
            return await action()
        except (ConnectionFault, RegistryError) as exc:
            if not is_transient(exc) or attempt == http.patience.attempts:
                raise
            wait = exc.wait if isinstance(exc, RegistryError) else 0.0
            await asyncio.sleep(wait or http.patience.delay * attempt)
    raise AssertionError


async def fetch_manifest(repository: Repository, what: str, shown: str) -> Manifest | Index:
    """A manifest by tag or digest, verified; RegistryError, TransferFault, ConnectionFault."""
    if ":" in what:
        manifests.check_digest(what)

    async def fetch() -> tuple[bytes, str]:
        headers = {"Accept": manifests.ACCEPT}
        async with repository.send(
            "GET", f"manifests/{quote(what, safe=':')}", headers=headers
        ) as answer:
            raw = await read_all(answer, manifests.MANIFEST_LIMIT, f"the manifest of {shown}")
            return raw, answer.headers.get("Content-Type", "")

    raw, content_type = await retried(repository.http, fetch)
    if ":" in what and manifests.digest_of(raw) != what:
        raise TransferFault(f"manifest verification failed for digest {what}")
    return manifests.parse(raw, content_type, shown)


def _remote_name(reference: references.Reference) -> str:
    return reference.path


def _config_json(raw: bytes, shown: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise TransferFault(f"invalid image config of {shown}: {exc}") from exc
    if not isinstance(value, dict):
        raise TransferFault(f"invalid image config of {shown}: it is no JSON object")
    return value


def _check_platform(config: dict[str, Any], wanted: str, shown: str) -> None:
    """NotFound if a platform was asked for by name, and the image is for another one."""
    if not wanted:
        return
    platform = platforms.parse(wanted)
    wishes = manifests.wishlist(platform)
    if manifests.rank_of({"os": "linux", **config}, wishes) < 0:
        actual = platforms.Platform(
            str(config.get("architecture") or ""), str(config.get("variant") or "")
        )
        raise NotFound(
            f"image with reference {shown} was found but does not match the specified platform: "
            f"wanted {manifests.show_platform(platform)}, "
            f"actual: {manifests.show_platform(actual)}"
        )
