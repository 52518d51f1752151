"""What is asked of a host that talks to a registry: pull, push, search, log in, hand over blobs."""

from __future__ import annotations

from typing import Any

from .base import Done, Model, Request
from .image import ImageRecord


class RegistryAuth(Model):
    """Who asks a registry, as `X-Registry-Auth` says it. It is kept nowhere."""

    username: str = ""
    password: str = ""
    auth: str = ""
    """base64 of `username:password`, in place of the two."""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class PullImage(Request):
    """To a worker: pull an image. Sent again after a crash, it goes on at the byte.

    The reply is a `Pulled`; an error before any progress is one of HTTP.
    """

    reference: str
    """In full form; without a tag and a digest all tags of the repository are pulled."""
    platform: str = ""
    auth: RegistryAuth = RegistryAuth()
    progress: str = ""
    """A subject that gets `TransferProgress` messages; empty: nobody looks."""
    known: dict[str, str] = {}
    """The image ids of this repository's references now, by full reference."""


class PushImage(Request):
    """To a worker: push the images of one repository, by tag."""

    name: str
    """The repository in full form."""
    images: dict[str, ImageRecord]
    sources: list[str] = []
    """Paths of repositories of the same registry that may have some of the layers."""
    auth: RegistryAuth = RegistryAuth()
    progress: str = ""


class TransferProgress(Model):
    """Lines of Docker's progress stream, in order."""

    messages: list[dict[str, Any]]


class Pulled(Done):
    """The last lines of the progress stream, and what was pulled by full reference."""

    messages: list[dict[str, Any]] = []
    images: dict[str, str] = {}


class Pushed(Done):
    """The last lines of the progress stream."""

    messages: list[dict[str, Any]] = []


class CancelTransfer(Request):
    """To a worker: the sender of a pull or push (by its request_id) is gone."""

    transfer: str


class SearchRegistry(Request):
    """To a worker: search an index; the term may begin with a registry's host."""

    term: str
    limit: int = 25
    auth: RegistryAuth = RegistryAuth()


class SearchResult(Model):
    name: str = ""
    description: str = ""
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class SearchResults(Done):
    results: list[SearchResult] = []


class InspectDistribution(Request):
    """To a worker: what a registry has under a reference (in full form)."""

    reference: str
    auth: RegistryAuth = RegistryAuth()


class DistributionInspected(Done):
    """A descriptor and its platforms, their keys as the OCI image specification has them."""

    descriptor: dict[str, Any] = {}
    platforms: list[dict[str, Any]] = []


class CheckAuth(Request):
    """To a worker: whether a registry takes these credentials."""

    auth: RegistryAuth


class AuthChecked(Done):
    status: str = ""
    identity_token: str = ""


class OpenBlob(Request):
    """To a worker: open a download (kit.streams) of a blob of its content store."""

    digest: str
    offset: int = 0
