"""What a build fetches by itself: ADD of a URL, and contexts that are a URL or a git repository."""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import re
import urllib.error
import urllib.request
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from mooring.runtime.images.compress import Read
from mooring.runtime.images.fetchwords import get_failed

from .context import BadContext, Context
from .copying import Source
from .dockerfile.errors import StepError
from .tree import Entry, Kind, digest

T = TypeVar("T")

_PIECE = 1 << 20
_TIMEOUT = 60.0
"""Seconds without a byte after which a server is given up."""
_GIT_TIMEOUT = 600.0
_URL = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"(?:git://|git@|ssh://|github\.com/)|https?://[^#]*\.git(?:#.*)?$")


class GitSource(NamedTuple):
    """`repository#reference:directory`."""

    repository: str
    reference: str
    directory: str


def is_url(text: str) -> bool:
    """Whether a source of ADD is fetched."""
    return _URL.match(text) is not None


def git_source(text: str) -> GitSource | None:
    """What a remote context means by a git repository; None if it is none."""
    if not _GIT.match(text):
        return None
    repository, _, fragment = text.partition("#")
    reference, _, directory = fragment.partition(":")
    if repository.startswith("github.com/"):
        repository = f"https://{repository}"
    return GitSource(repository, reference, directory)


async def fetch(url: str, destination: str, job: Path, limit: int) -> Source:
    """ADD of a URL: a file of limit bytes at most, with what the cache knows it by. StepError."""
    name = posixpath.basename(unquote(urlsplit(url).path))
    if not name and (destination.endswith("/") or not destination):
        raise StepError(f"cannot determine filename for url: {url}")
    return await _in_thread(lambda stop: _fetch(url, name or "file", job, limit, stop))


async def _in_thread(work: Callable[[Event], T]) -> T:
    """Do what blocks in a thread. Cancelled, it is told to stop, and has ended on return."""
    stop = Event()
    working = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({working})
        raise


def _fetch(url: str, name: str, job: Path, limit: int, stop: Event) -> Source:
    fd = os.open(job, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with _opened(url, stop) as response:
            content, size = hashlib.sha256(), 0
            while piece := response.read(_PIECE):
                content.update(piece)
                size += len(piece)
                if size > limit:
                    most = f"{limit} bytes (setting build_max_context)"
                    raise StepError(f"ADD failed: {url} is larger than {most}")
                while piece:
                    piece = piece[os.write(fd, piece) :]
            modified = _modified(response)
    except (OSError, HTTPException) as exc:
        os.close(fd)
        raise StepError(f"ADD failed: failed to GET {url}: {exc}") from exc
    except BaseException:
        os.close(fd)
        raise
    entry = Entry(Kind.FILE, 0o600, size=size, mtime_ns=modified, content=content.digest())
    tree = _File(fd, entry)
    return Source(tree, name, name, entry, digest(tree, name, entry))


class _Stopped(HTTPException):
    """Nobody waits for the answer any more."""


class _Answer:
    """The body of an answer, in pieces as they come: one that drips can be stopped between them."""

    def __init__(self, response: HTTPResponse, stop: Event) -> None:
        self._response, self._stop = response, stop
        self.headers = response.headers

    def read(self, limit: int) -> bytes:
        """Some of the next bytes, empty at the end; OSError, HTTPException."""
        if self._stop.is_set():
            raise _Stopped("the build was cancelled")
        piece = self._response.read1(limit)
        if not piece and self._response.length:
            # The library takes an answer that is cut short for a whole one.
            raise HTTPException("unexpected EOF")
        return piece


@contextmanager
def _opened(url: str, stop: Event) -> Iterator[_Answer]:
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT)
    except urllib.error.HTTPError as exc:
        raise StepError(
            f"ADD failed: failed to GET {url} with status {exc.code} {exc.reason}: {exc.reason}"
        ) from exc
    except (OSError, ValueError, HTTPException) as exc:
        raise StepError(f"ADD failed: {get_failed(url, exc)}") from exc
    with response:
        yield _Answer(response, stop)


def _modified(response: _Answer) -> int:
    text = response.headers.get("Last-Modified", "")
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1_000_000_000
    except (TypeError, ValueError):
        return 0


class _File:
    """A Tree of one downloaded file; it is gone with the build."""

    def __init__(self, fd: int, entry: Entry) -> None:
        self._fd = fd
        self._entry = entry

    def __del__(self) -> None:
        os.close(self._fd)

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        return self._entry if path else None

    def names(self, path: str) -> list[str]:
        """See Tree."""
        return []

    def hashed(self, path: str, entry: Entry) -> bytes:
        """See Tree."""
        return entry.content

    def open(self, path: str, entry: Entry) -> tuple[int, int, bool]:
        """See Tree."""
        return self._fd, 0, False


# --- contexts ---


async def receive_url(url: str, context: Context, dockerfile: str, limit: int) -> None:
    """A context that is a URL: of a tar, or of a Dockerfile alone. BadContext and others."""
    await _in_thread(lambda stop: _receive_url(url, context, dockerfile, limit, stop))


def _receive_url(url: str, context: Context, dockerfile: str, limit: int, stop: Event) -> None:
    try:
        with _opened(url, stop) as response:
            kind = response.headers.get_content_type()
            if kind in ("text/plain", "text/x-dockerfile"):
                text = b""
                while piece := response.read(_PIECE):
                    text += piece
                    if len(text) > _PIECE:
                        raise BadContext(f"the Dockerfile at {url} is too large")
                context.add_file(dockerfile, text)
                return
            context.receive(response.read, limit)
    except StepError as exc:
        raise BadContext(f"unable to download remote context: {exc}") from exc
    except HTTPException as exc:
        raise BadContext(f"unable to download remote context: {url}: {exc}") from exc


async def receive_git(source: GitSource, context: Context, job: Path, limit: int) -> None:
    """A context that is a git repository: cloned, checked out, its files read. BadContext."""
    checkout = job / "git"
    clone = ["clone", "--quiet", "--recurse-submodules"]
    if not source.reference:
        clone += ["--depth", "1"]
    await _git(*clone, "--", source.repository, str(checkout))
    if source.reference:
        await _check_out(checkout, source.reference)
    root = (checkout / source.directory).resolve()
    if not root.is_relative_to(checkout.resolve()) or not root.is_dir():
        raise BadContext(f"error setting git context, not a directory: {source.directory}")
    packing = await asyncio.create_subprocess_exec(
        "tar", "-c", "--exclude=.git", "-f", "-", "-C", str(root), ".", stdout=PIPE
    )
    assert packing.stdout is not None
    try:
        spool = job / "git.tar"
        with open(spool, "wb") as file:
            while piece := await packing.stdout.read(_PIECE):
                file.write(piece)
    finally:
        if packing.returncode is None:
            await packing.wait()
    with open(spool, "rb", buffering=0) as file:
        await _in_thread(lambda stop: context.receive(_stoppable(file.read, stop), limit))
    spool.unlink()


def _stoppable(read: Read, stop: Event) -> Read:
    def some(limit: int) -> bytes:
        if stop.is_set():
            raise BadContext("the build was cancelled")
        return read(limit)

    return some


async def _check_out(checkout: Path, reference: str) -> None:
    """A branch, a tag, whatever else the server has a name for, or a commit."""
    if reference.startswith("-"):
        raise BadContext(f"invalid git reference: {reference}")
    git = ["-C", str(checkout)]
    try:
        await _git(*git, "fetch", "--quiet", "origin", reference)
        commit = "FETCH_HEAD"
    except BadContext:
        # A server gives no single commits, but all that belong to a branch are here.
        commit = reference
    await _git(*git, "checkout", "--quiet", "--detach", commit)
    await _git(*git, "submodule", "--quiet", "update", "--init", "--recursive")


async def _git(*arguments: str) -> None:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_PROTOCOL_FROM_USER": "0"}
    try:
        process = await asyncio.create_subprocess_exec(
            "git", *arguments, stdout=PIPE, stderr=PIPE, env=environment
        )
    except FileNotFoundError:
        raise BadContext("unable to find 'git': it must be installed on this host") from None
    try:
        async with asyncio.timeout(_GIT_TIMEOUT):
            _, errors = await process.communicate()
    except TimeoutError:
        raise BadContext("git takes too long") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = errors.decode("utf-8", "replace").strip()
        raise BadContext(f"error fetching: {text}: exit status {process.returncode}")
