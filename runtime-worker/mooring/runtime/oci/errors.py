"""The one error of the runtime: a sentence and an exit code."""

from __future__ import annotations

NOT_EXECUTABLE = 126
NOT_FOUND = 127
FAILED = 128


class OciError(Exception):
    """What went wrong, in a sentence; exit_code is 126 (not executable), 127 (not found) or 128."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def because(what: str, cause: OSError, exit_code: int = FAILED) -> OciError:
    """An OciError for `what`, with the reason the kernel gave."""
    reason = cause.strerror or str(cause)
    return OciError(f"{what}: {reason[:1].lower()}{reason[1:]}", exit_code)
