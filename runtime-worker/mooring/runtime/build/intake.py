"""From an upload to a context and a Dockerfile, before the first step of a build."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterable
from pathlib import Path

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.build import BuildOptions
from mooring.runtime.images.compress import CompressionError, Read
from mooring.runtime.images.tar import TarError

from .context import BadContext, Context
from .dockerfile import stages
from .dockerfile.errors import DockerfileError
from .dockerfile.stages import Dockerfile
from .patterns import BadPattern
from .remote import git_source, is_url, receive_git, receive_url

_SMALL = 1 << 19
"""Bytes of a context that is read where it is, without a thread."""
_AHEAD = 32


async def receive(
    upload: AsyncIterable[memoryview], options: BuildOptions, job: Path, limit: int
) -> Context:
    """The context that the client sends or names; InvalidParameter."""
    context = Context(job / "context")
    try:
        if options.remote:
            await _remote(options, context, job, limit)
        else:
            await _uploaded(upload, context, limit)
        return context
    except (TarError, CompressionError) as exc:
        context.close()
        raise InvalidParameter(f"Error processing tar file: {exc}") from exc
    except BadContext as exc:
        context.close()
        raise InvalidParameter(str(exc)) from exc
    except BaseException:
        context.close()
        raise


def read_dockerfile(context: Context, options: BuildOptions) -> Dockerfile:
    """The Dockerfile of a context, up to the target; InvalidParameter.

    Afterwards the context is without what its .dockerignore names, perhaps the Dockerfile too.
    """
    name = options.dockerfile or "Dockerfile"
    try:
        text = context.text(name)
        if text is None and not options.dockerfile:
            name = "dockerfile"
            text = context.text(name)
        if text is None:
            wanted = options.dockerfile or "Dockerfile"
            raise InvalidParameter(f"Cannot locate specified Dockerfile: {wanted}")
        if not text:
            raise InvalidParameter(f"the Dockerfile ({name}) cannot be empty")
        context.filter(name, everything=bool(options.remote))
        return stages.select(stages.read(text), options.target, options.labels)
    except (DockerfileError, BadContext, BadPattern) as exc:
        raise InvalidParameter(str(exc)) from exc


async def _remote(options: BuildOptions, context: Context, job: Path, limit: int) -> None:
    git = git_source(options.remote)
    if git is not None:
        await receive_git(git, context, job, limit)
    elif is_url(options.remote):
        await receive_url(options.remote, context, options.dockerfile or "Dockerfile", limit)
    else:
        raise BadContext(f"remotecontext: unsupported remote: {options.remote}")


async def _uploaded(upload: AsyncIterable[memoryview], context: Context, limit: int) -> None:
    pieces = aiter(upload)
    start: list[bytes] = []
    size = 0
    async for piece in pieces:
        start.append(bytes(piece))
        size += len(piece)
        if size > _SMALL:
            break
    else:
        context.receive(_reader(start), limit)
        return
    await _in_thread(pieces, start, context, limit)


def _reader(pieces: list[bytes]) -> Read:
    left = iter(pieces)
    return lambda _: next(left, b"")


async def _in_thread(
    pieces: AsyncIterable[memoryview], start: list[bytes], context: Context, limit: int
) -> None:
    """Hash and spool beside the bytes that arrive; a few of them wait at most."""
    waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    room = asyncio.Semaphore(_AHEAD)
    loop = asyncio.get_running_loop()
    for piece in start:
        waiting.put(piece)
    broken = False
    ended = False

    def read(_: int) -> bytes:
        nonlocal ended
        item = None if ended else waiting.get()
        loop.call_soon_threadsafe(room.release)
        if item is None:
            ended = True
            if broken:
                raise BadContext("the build context was broken off")
            return b""
        return item

    reading = asyncio.create_task(asyncio.to_thread(context.receive, read, limit))
    try:
        async for view in pieces:
            await room.acquire()
            if reading.done():
                break
            waiting.put(bytes(view))
    except BaseException:
        broken = True
        raise
    finally:
        waiting.put(None)
        # The spool must not be closed under the thread's hands.
        await asyncio.wait({reading})
    await reading
