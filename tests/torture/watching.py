"""Clients that watch from the first to the last: every event, once and in order, for each."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections import defaultdict
from typing import Any

from tests.engine.harness import Engine, UnixHTTP

from .asking import PATIENCE
from .clients import LABEL, Past

LAST = "torture-last"
"""Name of the container whose creation ends the watching."""


class Watching(threading.Thread):
    """One `GET /events` from the beginning to the end of the torture."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.engine = engine
        self.seen: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.began = threading.Event()

    def run(self) -> None:
        try:
            self.watch()
        except Exception as exc:
            self.wrong.append(f"{self.name} ended: {exc!r}")
        if not self.seen or name_of(self.seen[-1]) != LAST:
            self.wrong.append(f"{self.name}: ended by itself after {len(self.seen)} events")

    def watch(self) -> None:
        """Fill `seen` until the last one is there."""
        connection = UnixHTTP(self.engine.socket, 4 * PATIENCE)
        filters = json.dumps({"type": ["container"], "label": [LABEL]}).replace(" ", "")
        connection.request("GET", f"/events?since=0&filters={filters}")
        response = connection.getresponse()
        self.began.set()
        for line in response:
            if self.take(line):
                break
        connection.close()

    def take(self, line: bytes) -> bool:
        """Note one; whether it was the last."""
        self.seen.append(json.loads(line))
        return name_of(self.seen[-1]) == LAST


class WatchingByCli(Watching):
    """The same by `docker events`."""

    def watch(self) -> None:
        command = ["docker", "events", "--since", "0", "--format", "{{json .}}"]
        command += ["--filter", "type=container", "--filter", f"label={LABEL}"]
        with subprocess.Popen(command, env=self.engine.env, stdout=subprocess.PIPE) as client:
            self.began.set()
            assert client.stdout is not None
            for line in client.stdout:
                if self.take(line):
                    break
            client.kill()


def name_of(event: dict[str, Any]) -> str:
    """The name of the container that an event is of."""
    return str(event["Actor"]["Attributes"].get("name", ""))


def essence(event: dict[str, Any]) -> tuple[int, str, str]:
    """What makes an event that one."""
    return event["timeNano"], event["Action"], event["Actor"]["ID"]


def compare(watchers: list[Watching], replay: list[dict[str, Any]]) -> list[str]:
    """Everybody has seen the same, in the same order, and so does who asks afterwards."""
    wrong = []
    expected = [essence(event) for event in replay]
    for watcher in watchers:
        wrong += watcher.wrong
        found = [essence(event) for event in watcher.seen]
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=False))
            at = next((n for n, (a, b) in pairs if a != b), min(len(found), len(expected)))
            around = f"{found[at - 1 : at + 2]}, not {expected[at - 1 : at + 2]}"
            wrong.append(
                f"{watcher.name}: {len(found)} events of {len(expected)}, differ at {at}: {around}"
            )
    return wrong


def check(
    events: list[dict[str, Any]], past: list[Past], execs: list[tuple[str, str, int]]
) -> list[str]:
    """What was told of each container and exec is what has happened."""
    wrong = []
    by_id: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    by_exec: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if (exec_id := event["Actor"]["Attributes"].get("execID")) is not None:
            by_exec[exec_id].append(event)
        else:
            by_id[event["Actor"]["ID"]].append(event)
    told = re.compile(r"create|start|die|stop|restart|pause|unpause|rename|destroy|oom")
    for one in past:
        acts = "".join(f"{e['Action']} " for e in by_id[one.id] if told.fullmatch(e["Action"]))
        if not re.fullmatch(one.events, acts):
            wrong.append(f"{one.name} {one.id[:12]}: events {acts!r}, not {one.events!r}")
        times = [event["timeNano"] for event in by_id[one.id]]
        if times != sorted(times):
            wrong.append(f"{one.name} {one.id[:12]}: the times of its events go back")
        codes = [
            int(event["Actor"]["Attributes"]["exitCode"])
            for event in by_id[one.id]
            if event["Action"] == "die"
        ]
        if one.codes and codes != one.codes:
            wrong.append(f"{one.name} {one.id[:12]}: died with {codes}, not {one.codes}")
    for name, id_, code in execs:
        acts = " ".join(event["Action"].split(":")[0] for event in by_exec[id_])
        codes = [int(e["Actor"]["Attributes"].get("exitCode", -1)) for e in by_exec[id_]]
        if acts != "exec_create exec_start exec_die" or codes[-1] != code:
            wrong.append(f"exec {id_[:12]} of {name}: events {acts!r}, exit codes {codes}")
    return wrong
