"""One push: the layers, the config and the manifest of each tag, in this order."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mooring.kit import references
from mooring.kit.errors import EngineError
from mooring.runtime.images.store import ImageStore, LayerInfo

from . import manifests
from .challenge import Credentials
from .client import Http, Repository, connect
from .host import Host
from .layers import Places, short
from .manifests import Descriptor, Manifest
from .progress import Message, Meter, state, status
from .pull import patiently
from .upload import Upload, exists
from .words import NoCredentials, TransferFault

if TYPE_CHECKING:
    from mooring.kit.models.image import ImageRecord

_CHUNK = 1 << 20
_LEVEL = 1
"""Of isal: as small as zlib's 2 or 3, at some 400 MB/s."""


@dataclass(slots=True)
class Slots:
    """How much is done at once by all pushes of this process."""

    uploads: asyncio.Semaphore
    compressing: asyncio.Semaphore


class Push:
    """A push that is under way."""

    def __init__(
        self, http: Http, store: ImageStore, places: Places, slots: Slots, host: Host
    ) -> None:
        self._http, self._store, self._places = http, store, places
        self._slots, self._host = slots, host

    async def run(self, args: dict[str, Any]) -> dict[str, Any]:
        """Push what a PushImage (as JSON) names; EngineError in Docker's words."""
        # Not above: pydantic and the models take 0.15 s of CPU, which a pull does without.
        from mooring.kit.models.image import ImageRecord

        name = references.parse(args["name"])
        auth = Credentials.parse(args["auth"])
        images = {tag: ImageRecord.model_validate(value) for tag, value in args["images"].items()}
        chain_ids = {layer.chain_id for image in images.values() for layer in image.layers}
        for image in images.values():
            await self._host.lease(sorted(chain_ids), image.id)
        sources = tuple(args["sources"])
        messages: list[Message] = []
        revision = 0
        try:
            (repository,) = await connect(self._http, name, auth, "pull,push", sources)
            for tag, image in images.items():
                for message in messages:
                    self._host.say(message)
                messages, done = await self._push(repository, name, tag, image, sources)
                revision = max(revision, done)
        except NoCredentials as exc:
            raise EngineError("no basic auth credentials") from exc
        return {"messages": messages, "revision": revision}

    async def _push(
        self,
        repository: Repository,
        name: references.Reference,
        tag: str,
        image: ImageRecord,
        sources: Sequence[str],
    ) -> tuple[list[Message], int]:
        layers = [self._layer(layer.chain_id) for layer in image.layers]
        known = self._known(image)
        unique = list({info.blob: info for info in reversed(layers)}.values())
        for info in unique:
            self._host.say(state("Preparing", short(info.diff_id)))
        sending = {
            info.blob: asyncio.create_task(self._send_layer(repository, info, known, sources))
            for info in unique
        }
        try:
            await asyncio.gather(*sending.values())
        finally:
            for task in sending.values():
                task.cancel()
            await asyncio.gather(*sending.values(), return_exceptions=True)
        descriptors = [sending[info.blob].result() for info in layers]
        raw, media_type = self._manifest(image, descriptors, known)
        await self._send_config(repository, image)
        digest = manifests.digest_of(raw)
        await self._put(repository, tag, raw, media_type)
        path = self._places.job / f"{digest[7:]}.json"
        path.write_bytes(raw)
        revision = await self._host.add(
            {
                "image": image.model_dump(mode="json"),
                "manifest": digest,
                "blobs": {digest: str(path)},
                "reference": str(name._replace(tag=tag)),
                "digest_reference": f"{name.name}@{digest}",
            }
        )
        messages: list[Message] = [
            status(f"{tag}: digest: {digest} size: {len(raw)}"),
            {"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": len(raw)}},
        ]
        return messages, revision

    def _layer(self, chain_id: str) -> LayerInfo:
        try:
            return self._store.layer_info(chain_id)
        except FileNotFoundError:
            raise EngineError(f"layer {chain_id} is not on this host") from None

    def _known(self, image: ImageRecord) -> list[Manifest]:
        """The manifests that the image was pulled or pushed with before."""
        found = []
        for digest in image.manifests:
            with suppress(OSError, ValueError, TransferFault, EngineError):
                parsed = manifests.parse(self._store.read_blob(digest), "", digest)
                if isinstance(parsed, Manifest):
                    found.append(parsed)
        return found

    async def _send_layer(
        self,
        repository: Repository,
        info: LayerInfo,
        known: Sequence[Manifest],
        sources: Sequence[str],
    ) -> Descriptor:
        say, id_ = self._host.say, short(info.diff_id)
        for manifest in known:
            for descriptor in manifest.layers:
                if descriptor.digest == info.blob and descriptor.foreign:
                    say(state("Skipped foreign layer", id_))
                    return descriptor
        if self._slots.uploads.locked():
            say(state("Waiting", id_))
        async with self._slots.uploads:
            if info.compression not in ("gzip", "zstd"):
                info = await self._compress(info)
            path = self._store.blob(info.blob)
            descriptor = Descriptor(
                manifests.layer_type(info.compression, oci=False), info.blob, path.stat().st_size
            )
            if await patiently(self._http, lambda: exists(repository, descriptor)):
                say(state("Layer already exists", id_))
                return descriptor
            meter = Meter(say, "Pushing", id_, descriptor.size)
            upload = Upload(repository, descriptor, path, meter)
            location = ""
            for source in sources:
                location = await upload.mount(source)
                if not location:
                    say(state(f"Mounted from {source}", id_))
                    return descriptor
            await upload.run(location)
            say(state("Pushed", id_))
            return descriptor

    async def _compress(self, info: LayerInfo) -> LayerInfo:
        """Registries are sent gzip; from now on that is what the content store has."""
        path = self._places.job / f"{info.blob[7:]}.gz"
        async with self._slots.compressing:
            current = self._layer(info.chain_id)
            if current.blob != info.blob:
                return current  # Another push was faster.
            digest = await asyncio.to_thread(gzip, self._store.blob(info.blob), path)
        await self._host.compressed(
            {"old": info.blob, "path": str(path), "digest": digest, "compression": "gzip"}
        )
        path.unlink(missing_ok=True)
        return self._layer(info.chain_id)

    async def _send_config(self, repository: Repository, image: ImageRecord) -> None:
        path = self._store.blob(image.id)
        descriptor = Descriptor(manifests.DOCKER_CONFIG, image.id, path.stat().st_size)
        if not await patiently(self._http, lambda: exists(repository, descriptor)):
            await Upload(repository, descriptor, path).run()

    def _manifest(
        self, image: ImageRecord, layers: Sequence[Descriptor], known: Sequence[Manifest]
    ) -> tuple[bytes, str]:
        """One the image had before, if it lists these very blobs; else a new one."""
        wanted = [layer.digest for layer in layers]
        for manifest in known:
            if manifest.config.digest == image.id and wanted == [
                layer.digest for layer in manifest.layers
            ]:
                return manifest.raw, manifest.media_type
        oci = any(self._is_zstd(layer.digest) for layer in layers)
        size = self._store.blob(image.id).stat().st_size
        config_type = manifests.OCI_CONFIG if oci else manifests.DOCKER_CONFIG
        if oci:
            layers = [self._as_oci(each) for each in layers]
        media_type = manifests.OCI_MANIFEST if oci else manifests.DOCKER_MANIFEST
        raw = manifests.generate(Descriptor(config_type, image.id, size), layers, media_type)
        return raw, media_type

    def _as_oci(self, layer: Descriptor) -> Descriptor:
        compression = "zstd" if self._is_zstd(layer.digest) else "gzip"
        return Descriptor(manifests.layer_type(compression, oci=True), layer.digest, layer.size)

    def _is_zstd(self, digest: str) -> bool:
        with open(self._store.blob(digest), "rb") as file:
            return file.read(4) == b"\x28\xb5\x2f\xfd"

    async def _put(self, repository: Repository, tag: str, raw: bytes, media_type: str) -> None:
        async def put() -> None:
            headers = {"Content-Type": media_type}
            async with repository.send("PUT", f"manifests/{quote(tag)}", headers=headers, data=raw):
                pass

        await patiently(self._http, put)


def gzip(source: Path, target: Path) -> str:
    """Compress a file, the same way every time; the digest of what came out."""
    from isal import isal_zlib

    compressor = isal_zlib.compressobj(_LEVEL, wbits=31)
    digest = hashlib.sha256()
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:

        def put(data: bytes) -> None:
            digest.update(data)
            rest = memoryview(data)
            while rest:
                rest = rest[writer.write(rest) :]

        while piece := reader.read(_CHUNK):
            put(compressor.compress(piece))
        put(compressor.flush())
        os.fdatasync(writer.fileno())
    return f"sha256:{digest.hexdigest()}"
