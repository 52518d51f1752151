"""Files of containers as tar streams (docker cp): from a gateway to a runtime worker."""

from __future__ import annotations

from typing import Any

from .base import Done, Request
from .container import ContainerRecord
from .image import ImageRecord


class ArchiveRequest(Request):
    """What is asked of which container, whether it runs or not."""

    record: ContainerRecord
    image: ImageRecord
    images: list[ImageRecord] = []
    """Those that are mounted in it."""
    container: str = ""
    """As the user named it."""
    path: str


class ReadArchive(ArchiveRequest):
    """Open a download: 4 bytes, big-endian: how long the JSON is that follows; JSON of the
    PathStat (`name size mode mtime linkTarget`), and unless stat_only the tar."""

    stat_only: bool = False


class WriteArchive(ArchiveRequest):
    """Open an upload of a tar, perhaps compressed, to be extracted in the directory `path`."""

    no_overwrite: bool = False
    """A directory is not replaced by something else, nor the reverse."""
    copy_ids: bool = False
    """All of it becomes the container's user's, if it has one."""


class ArchiveOpened(Done):
    """A gateway on the same host may take the bytes from (or bring them to) this socket itself.

    They come in frames: 4 bytes, big-endian, how many follow. A frame of none is the end; from the
    host there follows a last frame of JSON: `{}`, or `error` and `kind`.
    """

    path: str
    described: dict[str, Any] = {}
    """As in the stream of ReadArchive; a copy into a container has none."""


class ArchiveWritten(Done):
    pass
