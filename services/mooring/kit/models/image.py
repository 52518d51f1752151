"""Images: one record to an image, one record to a reference."""

from __future__ import annotations

from typing import Any

from .base import Done, Model, Request
from .container import ContainerRecord, Event


class Layer(Model):
    """One layer, from the bottom up. Digests are `sha256:<64 hex>`."""

    diff_id: str
    chain_id: str
    size: int = 0
    """Bytes of the files, unpacked."""


class HistoryEntry(Model):
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageRecord(Model):
    """An image, named by the digest of its config. It never changes; references come and go."""

    version: int = 1
    id: str
    created: str = ""
    """RFC 3339, as the image's config has it."""
    added_ns: int = 0
    author: str = ""
    architecture: str = "amd64"
    variant: str = ""
    os: str = "linux"
    config: dict[str, Any] = {}
    """`config` of the OCI image configuration, its keys as they are there (Env, Cmd, …)."""
    layers: list[Layer] = []
    history: list[HistoryEntry] = []
    size: int = 0
    nodes: list[str] = []
    """The hosts that have its layers unpacked."""
    manifests: list[str] = []
    """Digests of the manifests it came with, as blobs of the content store."""
    parent: str = ""
    """The id of the image it was made upon, here; empty for one that came from elsewhere."""
    orphan: bool = False
    """Removed by force while stopped containers have its layers below theirs: nobody finds it by
    any name, and it goes with the last of them."""
    build_key: str = ""
    """What step of a build made it of its parent: by it a later build finds the result."""


class ReferenceRecord(Model):
    """One reference (`docker.io/library/bb:latest` in full form) and the image it names."""

    version: int = 1
    reference: str
    image_id: str
    tagged_ns: int = 0


class AddImage(Request):
    """From a worker: an image is unpacked here; tag it.

    action: where it comes from: load, import, pull, commit, build. The first three are events.
    """

    image: ImageRecord
    references: list[str] = []
    action: str = "load"
    events: list[Event] = []
    """Further events of this, published once it is recorded."""


class TagImage(Request):
    image: str
    reference: str


class RemoveImage(Request):
    image: str
    force: bool = False
    noprune: bool = False


class ImageRemoved(Done):
    untagged: list[str] = []
    deleted: list[str] = []


class LoadImages(Request):
    """To a worker: open an upload (kit.streams) of a docker-archive or OCI layout tar."""

    progress: str = ""
    """A subject that gets `TransferProgress` messages; empty: nobody looks."""


class ImportImage(Request):
    """To a worker: open an upload of a root file system tar and make an image of it."""

    source: str = ""
    """The URL of the tar (http or https), which the worker gets; the upload is empty then."""
    reference: str = ""
    message: str = ""
    changes: list[str] = []
    platform: str = ""


class ImagesLoaded(Done):
    """What an upload made: `Loaded image: x` lines for the client, ids for the tests."""

    lines: list[str] = []
    image_ids: list[str] = []
    layers: dict[str, int] = {}
    """Layers that were not here before, in their order: bytes of their blobs by diff id."""


class PruneImages(Request):
    """Remove images without a tag, or (all) those that no container has; times in Unix ns."""

    all: bool = False
    until_ns: int | None = None
    labels: list[str] = []
    labels_not: list[str] = []


class ImagesPruned(ImageRemoved):
    space_reclaimed: int = 0
    """Bytes of the layers' files."""


class CommitContainer(Request):
    """To a worker: make an image of what a container has written."""

    record: ContainerRecord
    image: ImageRecord | None = None
    """The container's own."""
    reference: str = ""
    author: str = ""
    message: str = ""
    changes: list[str] = []
    """Dockerfile instructions."""
    config: dict[str, Any] | None = None
    """Instead of the container's own config; what it leaves out is filled in from that."""
    pause: bool = True


class ImageCommitted(Done):
    image_id: str


class SavedImage(Model):
    """An image of an archive; references in full form."""

    image: ImageRecord
    references: list[str] = []


class SaveImages(Request):
    """To a worker: open a download (kit.streams) of an archive of images."""

    images: list[SavedImage]
    offset: int = 0
    began: float = 0.0
    """When the archive was asked for first; Unix time. From an offset it only goes on as long as
    nothing that it is made of was exchanged since."""


class ExportContainer(Request):
    """To a worker: open a download of a tar of all that a container sees of its own files."""

    container: str
    image: ImageRecord | None = None
    offset: int = 0


class ListChanges(Request):
    """To a worker: what a container has added, changed and deleted."""

    container: str
    image: ImageRecord | None = None


class Changes(Done):
    """Paths with Docker's kinds: 0 modified, 1 added, 2 deleted."""

    changes: list[tuple[str, int]] = []


class NoteImage(Request):
    """Record an event that changes no image: save, push."""

    images: list[str]
    action: str


class RemoveLayers(Request):
    """To a worker: free the layers that no image record needs any more."""

    image: ImageRecord
    keep: list[str] = []
    """Chain ids that other images still use."""


class ImageChange(Model):
    """A change of images and references that was decided, in the order it is carried out.

    Written before the first step, so that it can be finished after a crash: every step can be
    repeated. Once done it is kept for a minute, for the same command may be sent again.
    """

    version: int = 1
    id: str
    owner: str = ""
    decided_ns: int = 0
    add: ImageRecord | None = None
    tag: list[ReferenceRecord] = []
    untag: list[ReferenceRecord] = []
    delete: ImageRecord | None = None
    parents: list[ImageRecord] = []
    """Deleted after it: what it was made upon, and nothing else needs."""
    events: list[Event] = []
    deleted: list[str] = []
    """What the answer to a removal says was deleted: the image and its layers."""
    done_ns: int = 0
    revision: int = 0
    """The highest revision that it caused, once done."""
