"""How typed messages and errors look on the bus: msgpack payloads, errors in header fields."""

from __future__ import annotations

from typing import TypeVar

import msgpack
from pydantic import ValidationError

from .errors import KINDS, EngineError, InvalidParameter
from .models.base import Model
from .nats_protocol import Msg, encode_headers

M = TypeVar("M", bound=Model)

ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"


def decode(data: bytes, model: type[M]) -> M:
    """A message from its payload; InvalidParameter for what does not fit the model."""
    try:
        return model.unpack(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidParameter(f"invalid {model.__name__}: {where}: {first['msg']}") from exc
    except (ValueError, msgpack.UnpackException) as exc:
        raise InvalidParameter(f"not a {model.__name__}: {exc}") from exc


def encode_error(error: EngineError) -> tuple[bytes, bytes]:
    """Header and payload of a reply that says what went wrong.

    The payload carries the message whole; the header its first line, for whoever watches the bus.
    """
    line = error.message.split("\n", 1)[0].replace("\r", " ")[:512]
    return encode_headers({ERROR: line, ERROR_CODE: error.kind}), error.message.encode()


def check_reply(message: Msg) -> None:
    """Raise the error that a reply carries, if it does."""
    if not message.header:
        return
    fields = message.headers()
    kind = fields.get(ERROR_CODE)
    if kind is not None:
        error = KINDS.get(kind, EngineError)
        raise error(message.data.decode(errors="replace") or fields.get(ERROR, ""))
