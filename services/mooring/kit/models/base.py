"""The base of every message and record."""

from __future__ import annotations

from typing import Self

import msgpack
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_pascal


class Model(BaseModel):
    """A value that crosses the bus: pydantic on each side, msgpack between.

    Unknown fields are ignored, so that an older process understands a newer one's message.
    Fields at their default are not sent.
    """

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    def pack(self) -> bytes:
        """As msgpack, without the fields that are at their default."""
        data: bytes = msgpack.packb(self.model_dump(exclude_defaults=True), use_bin_type=True)
        return data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From msgpack; ValidationError or ValueError for what does not fit."""
        return cls.model_validate(msgpack.unpackb(data, raw=False, strict_map_key=False))


class Docker(Model):
    """A part of the Docker API's JSON: the wire names are Docker's, the attributes ours."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, alias_generator=to_pascal)


class Request(Model):
    """A command. Its id makes it repeatable: a command seen before is answered, not done again."""

    request_id: str = ""


class Done(Model):
    """A reply that says no more than that it worked; revision is the KV revision to wait for."""

    revision: int = 0
