"""What is done to containers that exist: state, kill, delete, pause, resume, update, list, …"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from typing import Any

from mooring.runtime.oci.errors import OciError
from mooring.runtime.oci.hooks import run_hooks
from mooring.runtime.oci.linux import SIGKILL, send_signal

from .store import Container, Store, locked


def state(options: Namespace) -> int:
    """Print the state of a container as JSON."""
    container = Store(options.root).find(options.id)
    print(json.dumps(container.public() | {"created": container.state["created"]}, indent=2))
    return 0


def kill(options: Namespace) -> int:
    """Send a signal to init, or with --all to every process."""
    container = Store(options.root).find(options.id)
    number = signal_number(options.signal)
    if options.all:
        for pid in container.cgroup.pids():
            _kill(pid, number)
        return 0
    if not container.alive():
        raise OciError("container not running")
    signal_init(container, number)
    return 0


def signal_number(name: str) -> int:
    """A signal by number or by name, with or without SIG."""
    if name.isdigit():
        return int(name)
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise OciError(f"unknown signal {name!r}") from None


def signal_init(container: Container, number: int) -> None:
    """Through a pidfd, so that it can only be the process that was looked at."""
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        raise OciError("container not running") from None
    try:
        if container.alive():
            send_signal(pidfd, number)
    except ProcessLookupError:
        raise OciError("container not running") from None
    finally:
        os.close(pidfd)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def delete(options: Namespace) -> int:
    """Remove what a stopped container leaves; with --force also one that runs."""
    try:
        container = Store(options.root).find(options.id)
    except OciError:
        if options.force:
            return 0
        raise
    with locked(container):
        destroy(container, force=options.force)
    return 0


def destroy(container: Container, *, force: bool) -> None:
    """End it (if created or forced), remove its cgroup and its directory, run its last hooks."""
    status = container.status()
    if status in ("running", "paused") and not force:
        raise OciError(f"cannot delete container {container.id} that is not stopped: {status}")
    spec = container.spec
    if status != "stopped" and container.pid:
        signal_init(container, SIGKILL)
        if container.cgroup.exists() and status == "paused":
            container.cgroup.thaw()
        _await_end(container)
    container.cgroup.remove()
    hooks = (spec.get("hooks") or {}).get("poststop") or []
    said = json.dumps(container.public("stopped"))
    container.remove()
    run_hooks("poststop", hooks, said)


def _await_end(container: Container) -> None:
    deadline = time.monotonic() + 10
    while container.alive():
        if time.monotonic() > deadline:
            raise OciError(f"container {container.id} does not end")
        time.sleep(0.005)


def pause(options: Namespace) -> int:
    """Freeze every process of a container."""
    container = Store(options.root).find(options.id)
    if container.status() not in ("running", "created"):
        raise OciError(f"cannot pause a container that is {container.status()}")
    container.cgroup.freeze()
    return 0


def resume(options: Namespace) -> int:
    """Let a paused container go on."""
    container = Store(options.root).find(options.id)
    if container.status() != "paused":
        raise OciError(f"cannot resume a container that is {container.status()}")
    container.cgroup.thaw()
    return 0


_UPDATES = (
    ("memory", "limit", "memory"),
    ("memory", "swap", "memory_swap"),
    ("memory", "reservation", "memory_reservation"),
    ("cpu", "period", "cpu_period"),
    ("cpu", "quota", "cpu_quota"),
    ("cpu", "shares", "cpu_share"),
    ("cpu", "cpus", "cpuset_cpus"),
    ("cpu", "mems", "cpuset_mems"),
    ("pids", "limit", "pids_limit"),
    ("blockIO", "weight", "blkio_weight"),
)


def update(options: Namespace) -> int:
    """Change limits: from a file of OCI resources, then from flags."""
    container = Store(options.root).find(options.id)
    resources: dict[str, Any] = {}
    if options.resources == "-":
        resources = json.load(sys.stdin)
    elif options.resources:
        with open(options.resources) as file:
            resources = json.load(file)
    for section, key, flag in _UPDATES:
        if (value := getattr(options, flag)) is not None:
            resources.setdefault(section, {})[key] = value
    if container.status() == "stopped":
        raise OciError("container not running")
    container.cgroup.apply(resources)
    return 0


def list_containers(options: Namespace) -> int:
    """Every container below --root."""
    containers = list(Store(options.root))
    if options.quiet:
        for container in containers:
            print(container.id)
    elif options.format == "json":
        print(
            json.dumps(
                [c.public() | {"created": c.state["created"], "owner": "root"} for c in containers]
            )
        )
    else:
        row = "{:<24} {:<8} {:<10} {:<40} {}"
        print(row.format("ID", "PID", "STATUS", "BUNDLE", "CREATED"))
        for c in containers:
            public = c.public()
            created = c.state["created"]
            print(row.format(c.id, public["pid"], public["status"], c.bundle, created))
    return 0


def ps(options: Namespace) -> int:
    """The processes of a container: as ps shows them, or their pids as JSON."""
    container = Store(options.root).find(options.id)
    pids = container.cgroup.pids()
    if options.format == "json":
        print(json.dumps(pids))
        return 0
    command = ["ps", *(options.arguments or ["-ef"])]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    column = lines[0].split().index("PID")
    print(lines[0])
    for line in lines[1:]:
        if int(line.split()[column]) in pids:
            print(line)
    return 0


def events(options: Namespace) -> int:
    """Counters of a container as JSON, once or every --interval seconds while it runs."""
    container = Store(options.root).find(options.id)
    while True:
        if not container.alive():
            if options.stats:
                raise OciError("container not running")
            return 0
        event = {"type": "stats", "id": container.id, "data": _stats(container.cgroup.stats())}
        print(json.dumps(event), flush=True)
        if options.stats:
            return 0
        time.sleep(options.interval)


def _stats(raw: dict[str, Any]) -> dict[str, Any]:
    """Named and nested as the events of runc."""
    cpu, memory = raw.get("cpu") or {}, raw.get("memory") or {}
    block = raw.get("blkio") or {}
    return {
        "cpu": {
            "usage": {
                "total": cpu.get("usage", 0),
                "percpu": cpu.get("percpu", []),
                "kernel": cpu.get("system", 0),
                "user": cpu.get("user", 0),
            },
            "throttling": {
                "periods": cpu.get("periods", 0),
                "throttledPeriods": cpu.get("throttled_periods", 0),
                "throttledTime": cpu.get("throttled_time", 0),
            },
        },
        "memory": {
            "usage": {
                "limit": memory.get("limit", 0),
                "usage": memory.get("usage", 0),
                "max": memory.get("max_usage", 0),
                "failcnt": memory.get("failcnt", 0),
            },
            "raw": memory.get("stats", {}),
        },
        "pids": raw.get("pids", {}),
        "blkio": {
            "ioServiceBytesRecursive": block.get("io_service_bytes_recursive", []),
            "ioServicedRecursive": block.get("io_serviced_recursive", []),
        },
    }
