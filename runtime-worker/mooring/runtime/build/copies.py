"""COPY and ADD in one build: their words become a plan, the plan a layer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.kit.models.image import Layer

from . import copying
from .context import Context
from .copying import Plan, Source
from .dockerfile.errors import StepError
from .dockerfile.instructions import Copy
from .dockerfile.words import expand
from .layers import Layers
from .remote import fetch, is_url
from .rootfs import RootTree
from .tree import Tree

_SMALL = 200
"""Files of a context that are looked through in less time than it takes to ask a thread."""


class Copies:
    """Where the sources of one build come from."""

    def __init__(self, layers: Layers, context: Context, job: Path, archive_limit: int) -> None:
        self._layers = layers
        self._context = context
        self._job = job
        self._archive_limit = archive_limit

    async def plan(
        self,
        command: Copy,
        variables: Mapping[str, str],
        escape: str,
        workdir: str,
        root: int | None,
    ) -> Plan:
        """Find the sources; root is the mounted file system of --from. StepError."""
        words = [expand(word, variables, escape) for word in command.sources]
        destination = expand(command.destination, variables, escape)
        chown = expand(command.chown, variables, escape)
        chmod = expand(command.chmod, variables, escape)
        tree: Tree = self._context if root is None else RootTree(root)
        documents = {f"<<{'-' if d.chomp else ''}{d.name}": d for d in command.heredocs}
        found: list[Source] = []
        for word in words:
            if (document := documents.get(word)) is not None:
                content = document.content
                if document.expand:
                    content = _expand_lines(content, variables, escape)
                found.append(copying.document(document.name, content)[0])
            elif command.name == "ADD" and is_url(word):
                found.append(await fetch(word, destination, self._job, self._archive_limit))
            else:
                find = functools.partial(
                    copying.find,
                    tree,
                    word,
                    name=command.name,
                    context=root is None,
                    archive=command.name == "ADD",
                )
                small = root is None and len(self._context) <= _SMALL
                found += find() if small else await asyncio.to_thread(find)
        kept = root is not None
        return copying.plan(
            found, destination, workdir, chown, chmod, command.name, keeps_owners=kept
        )

    def perform(self, made: Plan, chain: Sequence[str], name: str) -> Layer | None:
        """Make the layer of a plan. StepError, OSError. Blocking."""
        return self._layers.make(
            chain, lambda root: copying.perform(made, root, name, limit=self._archive_limit)
        )


def _expand_lines(content: str, variables: Mapping[str, str], escape: str) -> str:
    """A document's variables; quotes mean nothing in it."""
    protected = content.replace('"', f'{escape}"')
    try:
        return expand(f'"{protected}"', variables, escape)
    except StepError as exc:
        raise StepError(f"failed to process a heredoc: {exc}") from exc
