"""`docker build`: what a client asks for, and what the builder tells the worker to keep."""

from __future__ import annotations

from .base import Done, Model, Request
from .container import Ulimit
from .image import ImageRecord


class BuildLimits(Model):
    """What the containers of RUN get. Bytes; CPU periods and quotas in microseconds."""

    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    cpu_period: int = 0
    cpu_quota: int = 0
    shm_size: int = 0
    ulimits: list[Ulimit] = []
    cgroup_parent: str = ""


class BuildOptions(Model):
    """The query of POST /build. Tags in full form."""

    tags: list[str] = []
    dockerfile: str = ""
    """Its path in the context; empty means Dockerfile, or dockerfile if there is only that."""
    remote: str = ""
    target: str = ""
    platform: str = ""
    quiet: bool = False
    no_cache: bool = False
    cache_from: list[str] = []
    pull: bool = False
    remove: bool = True
    force_remove: bool = False
    arguments: dict[str, str | None] = {}
    labels: dict[str, str] = {}
    network_mode: str = ""
    extra_hosts: list[str] = []
    security_opt: list[str] = []
    limits: BuildLimits = BuildLimits()
    registry_auth: dict[str, dict[str, str]] = {}
    """By registry, as X-Registry-Config has it; for pulling the images of FROM."""


class OpenBuild(Request):
    """To a worker: have a builder process, which stays for a while."""


class StartBuild(Request):
    """To a builder, as an upload of the context's tar; the reply comes when the build is over."""

    build: str
    """An id that the sender makes: letters and digits."""
    options: BuildOptions


class BuildDone(Done):
    """image_id is what was built, and tagged."""

    image_id: str = ""


class BuildOutput(Request):
    """To a builder: open the output of a build, lines of JSON for the client, as a download."""

    build: str
    offset: int = 0


class CancelBuild(Request):
    """To a builder: end a build, if it is still going on."""

    build: str


class KeepImages(Request):
    """From a builder to its worker: record images whose layers and configs are in the store."""

    build: str
    images: list[ImageRecord]


class DropBuild(Request):
    """From a builder to its worker: undo what a dead build has in the store, but for `keep`."""

    build: str
    keep: list[str] = []
    """Chain ids and image ids that records need."""
