"""Errors of the HTTP side, and how every error becomes a status and a message."""

from __future__ import annotations

from mooring.kit.errors import EngineError

from .http.head import BadHead


class HttpError(Exception):
    """An answer with a status for which the engine has no kind of error (404 of a path, 413…)."""

    def __init__(self, status: int, message: str, *, plain: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.plain = plain
        """As text instead of JSON."""


def status_and_message(exc: Exception) -> tuple[int, str] | None:
    """What to answer for exc; None for what nobody foresaw."""
    match exc:
        case EngineError() | HttpError() | BadHead():
            return exc.status, exc.message
        case _:
            return None
