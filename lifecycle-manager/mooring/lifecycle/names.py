"""Names of containers: claimed by creating a key, given back by deleting it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from mooring.kit.errors import Conflict, NotFound, StaleRevision
from mooring.kit.models.container import ContainerRecord, NameRecord, State
from mooring.kit.store import key_for, text_of

from .states import SECOND
from .table import Bucket, Mirror, Table

logger = logging.getLogger(__name__)

_CLAIM_LIMIT = 120 * SECOND
"""A claim without a record that is older than this belongs to nobody, whoever lives."""


class Names:
    """The bucket of names. A name belongs to the container whose record bears it."""

    def __init__(
        self,
        bucket: Bucket[NameRecord],
        claims: Mirror[NameRecord],
        containers: Table[ContainerRecord],
        owner: str,
        abandoned: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        self._bucket = bucket
        self._claims = claims
        self._containers = containers
        self._owner = owner
        self._abandoned = abandoned

    async def claim(self, name: str, container_id: str) -> int:
        """Take a name for a container; the claim's revision. Conflict if another one has it."""
        key = key_for(name)
        record = NameRecord(id=container_id, owner=self._owner, claimed_ns=time.time_ns())
        while True:
            try:
                return await self._bucket.create(key, record)
            except Conflict:
                pass
            try:
                held = await self._bucket.get(key)
            except NotFound:
                continue
            holder = held.record
            if holder.id == container_id:
                return held.revision
            if not await self.is_free(name, holder):
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container '
                    f'"{holder.id}". You have to remove (or rename) that container to be able '
                    "to reuse that name."
                )
            with contextlib.suppress(StaleRevision):
                return await self._bucket.update(key, record, held.revision)

    async def is_free(self, name: str, claim: NameRecord) -> bool:
        """Whether a claim is only what a crash or a removal has left behind."""
        try:
            record = (await self._containers.fetch(claim.id)).record
        except NotFound:
            record = None
        if record is not None and record.name == name:
            return record.state is State.REMOVED
        # No record yet, or not yet renamed: somebody may be at it.
        if time.time_ns() - claim.claimed_ns > _CLAIM_LIMIT:
            return True
        return await self._abandoned(claim.owner, claim.id)

    async def holder(self, name: str) -> str | None:
        """The id of the container that claims a name, or None."""
        try:
            return (await self._bucket.get(key_for(name))).record.id
        except NotFound:
            return None

    async def release(self, name: str, container_id: str, revision: int = 0) -> None:
        """Give a name back, if it is still this container's."""
        key = key_for(name)
        if revision:
            # Usually nobody has touched the claim since, and this is all.
            with contextlib.suppress(StaleRevision):
                await self._bucket.delete(key, revision)
                return
        with contextlib.suppress(NotFound, StaleRevision):
            held = await self._bucket.get(key)
            if held.record.id == container_id:
                await self._bucket.delete(key, held.revision)

    async def sweep(self) -> None:
        """Give back every name that a crash has left claimed for nobody."""
        for entry in self._claims.values():
            name, claim = text_of(entry.key), entry.record
            row = self._containers.get(claim.id)
            if row is not None and row.record.name == name:
                continue
            if await self._abandoned(claim.owner, claim.id) and await self.is_free(name, claim):
                logger.info("the name %s is free again: nobody bears it", name)
                with contextlib.suppress(StaleRevision):
                    await self._bucket.delete(entry.key, entry.revision)
