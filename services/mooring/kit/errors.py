"""The errors that travel over the bus: a small closed set of kinds, each with its HTTP status.

Raise one where the fact is known; only the gateway turns it into HTTP. The message is what the
user reads, in Docker's own words where clients match on the text.
"""

from __future__ import annotations

from typing import ClassVar


class EngineError(Exception):
    """Anything that went wrong and was not foreseen more precisely."""

    kind: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(EngineError):
    """The object named does not exist."""

    kind = "not_found"
    status = 404


class Conflict(EngineError):
    """The object is in a state, or a name is in use, that forbids this."""

    kind = "conflict"
    status = 409


class NotModified(EngineError):
    """The object is already as asked for."""

    kind = "not_modified"
    status = 304


class InvalidParameter(EngineError):
    """The request can never succeed as it stands."""

    kind = "invalid_parameter"
    status = 400


class Unauthorized(EngineError):
    """A registry does not accept the credentials."""

    kind = "unauthorized"
    status = 401


class Forbidden(EngineError):
    """Understood, and refused for what the object is."""

    kind = "forbidden"
    status = 403


class NotSupported(EngineError):
    """An option or an operation that Mooring does not have (yet); the message names it."""

    kind = "not_supported"
    status = 501


class Unavailable(EngineError):
    """A process, the bus or a host does not answer now; the same request may succeed later."""

    kind = "unavailable"
    status = 503


class StaleRevision(Conflict):
    """A compare-and-set lost: the record was changed by another between read and write."""

    kind = "stale_revision"


KINDS: dict[str, type[EngineError]] = {
    cls.kind: cls
    for cls in (
        EngineError,
        NotFound,
        Conflict,
        NotModified,
        InvalidParameter,
        Unauthorized,
        Forbidden,
        NotSupported,
        Unavailable,
        StaleRevision,
    )
}
