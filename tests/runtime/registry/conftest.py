"""The services for images and registries on a real bus, and a registry to talk to."""

from __future__ import annotations

import gzip
import os
from collections.abc import AsyncIterator

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Done
from mooring.kit.models.image import AddImage, ImageRecord
from mooring.kit.models.registry import PullImage, TransferProgress
from mooring.kit.nats_protocol import Msg
from mooring.kit.store import Bucket
from mooring.runtime.images.registry.service import RegistryService
from mooring.runtime.images.service import ImageService
from tests.runtime.images.archives import Entry, Image, digest, layer

from .fake import Registry, serving

BASE = layer([Entry("bin/", "dir"), Entry("bin/sh", data=b"shell", mode=0o755)])
TOP = layer([Entry("etc/motd", data=b"hello")])
BULKY = layer([Entry("var/bulk", data=os.urandom(3 << 20))])
BULKY_BLOB = digest(gzip.compress(BULKY, 1, mtime=0))
"""As a registry has it."""
IMAGE = Image([BASE, TOP], config={"Cmd": ["sh"]})


class Host:
    """A worker's image services, with a lifecycle manager that records what it is told."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self.bus, self.settings = bus, settings
        self.images: ImageService
        self.registries: RegistryService
        self.added: list[AddImage] = []
        self.records: Bucket[ImageRecord]

    async def start(self) -> None:
        self.records = await self.bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
        self.images = ImageService(self.bus, self.settings)
        await self.images.start()
        self.registries = RegistryService(self.bus, self.settings, self.images)
        self.registries.prepare()

    async def stop(self) -> None:
        await self.registries.close()
        await self.images.close()

    async def add(self, request: AddImage) -> Done:
        self.added.append(request)
        return Done(revision=await self.records.put(request.image.id[7:], request.image))

    def request(self, reference: str, **more: object) -> PullImage:
        values = {"reference": reference, "request_id": self.bus.new_id(), **more}
        return PullImage.model_validate(values)

    async def pull(self, registry: Registry, what: str = "app:1", **more: object) -> list[str]:
        """Pull from a registry; what it says in the end."""
        done = await self.registries.pull(self.request(f"{registry.address}/{what}", **more))
        return [message["status"] for message in done.messages]

    def watch(self) -> tuple[str, list[str]]:
        """A progress subject, and the texts of what is said there."""
        texts: list[str] = []
        inbox = self.bus.client.new_inbox()

        def receive(message: Msg) -> None:
            for line in TransferProgress.unpack(message.data).messages:
                texts.append(line["status"])

        self.bus.client.subscribe(inbox, receive)
        return inbox, texts

    def everything(self) -> set[str]:
        """What is in the store, on its way in and out."""
        state = self.settings.state_dir
        return {
            str(path.relative_to(state))
            for name in ("content/blobs", "layers", "ingest", "downloads")
            for path in (state / name).rglob("*")
            if path.name not in ("sha256", "s")
        }


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that lose no time over a registry that lies."""
    return settings.model_copy(
        update={
            "registry_retry_delay": 0.02,
            "max_download_attempts": 3,
            "registry_stall_timeout": 0.5,
            "registry_certs_dir": settings.run_dir / "certs.d",
        }
    )


@pytest.fixture
async def host(bus: Bus, settings: Settings) -> AsyncIterator[Host]:
    """A host that is up."""
    made = Host(bus, settings)
    await bus.serve(subjects.IMAGE_ADD, AddImage, made.add)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    """A registry without TLS."""
    async with serving(Registry()) as made:
        yield made
