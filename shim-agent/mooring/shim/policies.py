"""Restart policies: what follows an exit, and the file that a container's policy is kept in.

`containers/<id>/policy.json` is written by the worker at a start by command, if the policy restarts
(`name`, `max`, `count`, `stopped`, `run`), and from then on by the agent, which adds what it
decided about the exit of a run: `decided` (that run), `next_ns` (when the next one starts; 0: it
does not), `delay_ms`.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import Any

from .rundir import ExitRecord, read_json, write_json

logger = logging.getLogger(__name__)

FIRST_DELAY_MS = 100
LONGEST_DELAY_MS = 60_000
SETTLED_NS = 10 * 1_000_000_000
"""A run that lasted this long puts the back-off to its beginning."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One container's restart policy and what became of it. name: as Docker's, empty is `no`."""

    name: str = ""
    max: int = 0
    count: int = 0
    """How often it was restarted since the last start by command."""
    stopped: bool = False
    """By the user: no restarts until the next start."""
    run: int = 0
    """The run that was started last."""
    decided: int = 0
    next_ns: int = 0
    delay_ms: int = 0

    @property
    def restarts(self) -> bool:
        """Whether this policy ever restarts anything."""
        return self.name not in ("", "no")

    @property
    def pending(self) -> bool:
        """Whether a restart was decided and has not happened."""
        return bool(self.next_ns) and not self.stopped and self.decided == self.run

    def after(self, exited: ExitRecord, now_ns: int) -> Policy:
        """With the decision about the exit of a run; the same again if it was made before."""
        if self.decided == exited.run or exited.run < self.run:
            return self
        decided = replace(self, run=exited.run, decided=exited.run, next_ns=0, delay_ms=0)
        if not self._wants(exited):
            return decided
        lasted = exited.finished_ns - exited.started_ns
        if self.delay_ms and lasted < SETTLED_NS:
            delay = min(self.delay_ms * 2, LONGEST_DELAY_MS)
        else:
            delay = FIRST_DELAY_MS
        return replace(
            decided,
            count=self.count + 1,
            next_ns=(exited.finished_ns or now_ns) + delay * 1_000_000,
            delay_ms=delay,
        )

    def after_boot(self, now_ns: int) -> Policy:
        """What the start of the host makes of a run that is not there any more.

        `always` starts even what the user had stopped, `unless-stopped` does not; `on-failure`
        starts what was running, for which `after` was asked first.
        """
        if self.pending:
            return replace(self, next_ns=min(self.next_ns, now_ns))
        if self.name == "always" or (self.name == "unless-stopped" and not self.stopped):
            return replace(self, stopped=False, decided=self.run, next_ns=now_ns, delay_ms=0)
        return self

    def _wants(self, exited: ExitRecord) -> bool:
        if self.stopped:
            return False
        match self.name:
            case "always" | "unless-stopped":
                return True
            case "on-failure":
                return exited.exit_code != 0 and (self.max == 0 or self.count < self.max)
            case _:
                return False


class Policies:
    """The policy files below the state directory's `containers/`."""

    def __init__(self, containers: str) -> None:
        self._containers = containers

    def path(self, id_: str) -> str:
        """Where a container's policy is."""
        return f"{self._containers}/{id_}/policy.json"

    def read(self, id_: str) -> Policy:
        """A container's policy; the one that never restarts if there is no file."""
        return _parse(read_json(self.path(id_)) or {})

    def write(self, id_: str, policy: Policy) -> None:
        """Keep a container's policy; nothing if the container was removed meanwhile."""
        fields = {
            "name": policy.name,
            "max": policy.max,
            "count": policy.count,
            "stopped": policy.stopped,
            "run": policy.run,
            "decided": policy.decided,
            "next_ns": policy.next_ns,
            "delay_ms": policy.delay_ms,
        }
        try:
            write_json(self.path(id_), fields)
        except FileNotFoundError:
            pass
        except OSError as exc:
            # A full disk must not end the restarts; what is not kept is decided again.
            logger.error("cannot keep the restart policy of %s: %s", id_, exc)

    def keep_start(self, id_: str, start: bytes) -> None:
        """What a restart repeats, where the worker kept none: its policy restarted nothing."""
        path = f"{self._containers}/{id_}/start.msgpack"
        try:
            with open(f"{path}.new", "wb") as file:
                file.write(start)
        except FileNotFoundError:
            return  # It was removed meanwhile.
        os.rename(f"{path}.new", path)

    def decide(self, id_: str, exited: ExitRecord, now_ns: int) -> Policy:
        """The policy with its decision about an exit, kept before anyone is told."""
        policy = self.read(id_)
        if not policy.restarts:
            return policy
        decided = policy.after(exited, now_ns)
        if decided != policy:
            self.write(id_, decided)
        return decided

    def stop(self, id_: str) -> None:
        """No restarts until the next start by command."""
        policy = self.read(id_)
        if policy.restarts and not policy.stopped:
            self.write(id_, replace(policy, stopped=True))


def _parse(fields: dict[str, Any]) -> Policy:
    try:
        return Policy(
            name=str(fields.get("name") or ""),
            max=int(fields.get("max") or 0),
            count=int(fields.get("count") or 0),
            stopped=bool(fields.get("stopped")),
            run=int(fields.get("run") or 0),
            decided=int(fields.get("decided") or 0),
            next_ns=int(fields.get("next_ns") or 0),
            delay_ms=int(fields.get("delay_ms") or 0),
        )
    except (TypeError, ValueError):
        return Policy()
