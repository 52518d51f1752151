"""What goes wrong with a registry, in the words that Docker has for it."""

from __future__ import annotations

import json
from typing import Any

from mooring.kit.errors import EngineError, NotFound, Unauthorized

from .challenge import Challenge

_STATUS_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}
_MESSAGES = {
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "TOOMANYREQUESTS": "too many requests",
}
_SHOWN = 512
"""Characters of a registry's text that an error repeats."""


class RegistryError(Exception):
    """A registry's refusal: its code of the distribution specification and its message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message
        self.wait = 0.0
        """Seconds that the registry asks to be left alone."""
        super().__init__(f"{code.lower().replace('_', ' ')}: {message}" if code else message)


class ConnectionFault(Exception):
    """The registry can't be reached, or broke off: another attempt may succeed."""


class NoCredentials(Exception):
    """The registry asks for a user and a password, and none were given."""


class TransferFault(Exception):
    """What the registry sent can't be used; the message is for the user."""


def refusal(status: int, reason: str, body: bytes, challenges: list[Challenge]) -> RegistryError:
    """What an answer with an error status says."""
    if status == 401:
        for challenge in challenges:
            # Docker Hub says it there when a repository does not exist or is another's.
            if challenge.parameters.get("error") == "insufficient_scope":
                return RegistryError(status, "DENIED", _MESSAGES["DENIED"])
    for error in _errors(body):
        code = str(error.get("code") or _STATUS_CODES.get(status, "UNKNOWN"))
        message = str(error.get("message") or _MESSAGES.get(code, "unknown error"))
        return RegistryError(status, code, message[:_SHOWN])
    if status in _STATUS_CODES:
        code = _STATUS_CODES[status]
        return RegistryError(status, code, _MESSAGES[code])
    return RegistryError(status, "", f"received unexpected HTTP status: {status} {reason}")


def _errors(body: bytes) -> list[dict[str, Any]]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return []
    errors = value.get("errors") if isinstance(value, dict) else None
    if not isinstance(errors, list):
        return []
    return [error for error in errors if isinstance(error, dict)]


def pull_error(exc: Exception, shown: str, repository: str) -> EngineError:
    """What the user reads when a reference (or a whole repository) can't be pulled."""
    match exc:
        case EngineError():
            return exc
        case RegistryError(code="DENIED"):
            return NotFound(
                f"pull access denied for {repository}, repository does not exist or may require "
                f"'docker login': {exc}"
            )
        case RegistryError(code="NAME_UNKNOWN"):
            return NotFound(f"repository {repository} not found: {exc}")
        case RegistryError(code="MANIFEST_UNKNOWN") | RegistryError(status=404):
            return NotFound(f"manifest for {shown} not found: {exc}")
    return transfer_error(exc)


def transfer_error(exc: Exception) -> EngineError:
    """What the user reads in every other case."""
    match exc:
        case EngineError():
            return exc
        case RegistryError(status=404):
            return NotFound(str(exc))
        case RegistryError(code="UNAUTHORIZED", status=401):
            return _Refused(str(exc))
        case OSError():
            return EngineError(f"cannot store the image: {exc}")
    return EngineError(str(exc))


class _Refused(Unauthorized):
    """As `Unauthorized`, with the status that Docker answers a pull or push with."""

    kind = EngineError.kind
    status = EngineError.status
