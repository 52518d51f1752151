"""Signals by their numbers: `signal` would bring `enum` into every shim."""

from __future__ import annotations

from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGQUIT,
    SIGTERM,
    pidfd_send_signal,
    signal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import pidfd_send_signal, signal

__all__ = [
    "SIGCHLD",
    "SIGHUP",
    "SIGINT",
    "SIGKILL",
    "SIGQUIT",
    "SIGTERM",
    "SIG_DFL",
    "SIG_IGN",
    "pidfd_send_signal",
    "signal",
]
