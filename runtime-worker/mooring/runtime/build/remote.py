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
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from .context import BadContext, Context
from .copying import Source
from .dockerfile.errors import StepError
from .tree import Entry, Kind, digest

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


async def fetch(url: str, destination: str, job: Path) -> Source:
    """ADD of a URL: a file, with what the cache knows it by. StepError."""
    name = posixpath.basename(unquote(urlsplit(url).path))
    if not name and (destination.endswith("/") or not destination):
        raise StepError(f"cannot determine filename for url: {url}")
    return await asyncio.to_thread(_fetch, url, name or "file", job)


def _fetch(url: str, name: str, job: Path) -> Source:
    fd = os.open(job, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with _opened(url) as response:
        content, size = hashlib.sha256(), 0
        try:
            while piece := response.read(_PIECE):
                content.update(piece)
                size += os.write(fd, piece)
        except (OSError, HTTPException) as exc:
            os.close(fd)
            raise StepError(f"ADD failed: failed to GET {url}: {exc}") from exc
        modified = _modified(response)
    entry = Entry(Kind.FILE, 0o600, size=size, mtime_ns=modified, content=content.digest())
    tree = _File(fd, entry)
    return Source(tree, name, name, entry, digest(tree, name, entry))


@contextmanager
def _opened(url: str) -> Iterator[HTTPResponse]:
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT)
    except urllib.error.HTTPError as exc:
        raise StepError(
            f"ADD failed: failed to GET {url} with status {exc.code} {exc.reason}: {exc.reason}"
        ) from exc
    except (OSError, ValueError, HTTPException) as exc:
        reason = getattr(exc, "reason", exc)
        raise StepError(f"ADD failed: failed to GET {url}: {reason}") from exc
    with response:
        yield response


def _modified(response: HTTPResponse) -> int:
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


def receive_url(url: str, context: Context, dockerfile: str, limit: int) -> None:
    """A context that is a URL: of a tar, or of a Dockerfile alone. BadContext and others."""
    try:
        with _opened(url) as response:
            kind = response.headers.get_content_type()
            if kind in ("text/plain", "text/x-dockerfile"):
                context.add_file(dockerfile, response.read(_PIECE))
                return
            context.receive(response.read, limit)
    except StepError as exc:
        raise BadContext(f"unable to download remote context: {exc}") from exc


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
        await asyncio.to_thread(context.receive, file.read, limit)
    spool.unlink()


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
