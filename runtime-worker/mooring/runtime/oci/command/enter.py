"""exec: a further process in a container."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from typing import Any

from mooring.runtime.oci.container import Running, exec_process
from mooring.runtime.oci.errors import OciError

from . import console
from .create import wait, write_pid
from .profile import compile_profile
from .store import Store


def execute(options: Namespace) -> int:
    """Run a process in a container; its exit code, or 0 with --detach."""
    container = Store(options.root).find(options.id)
    status = container.status()
    if status not in ("running", "created"):
        raise OciError(f"cannot exec in a {status} container")
    spec = container.spec
    process = _process(options, spec)
    console.check(bool(process.get("terminal")), options.detach, options.console_socket)
    pidfd = os.pidfd_open(container.pid)
    if not container.alive():
        raise OciError("container not running")
    started = exec_process(
        Running(container.pid, pidfd, None, container.cgroup),
        spec,
        process,
        stdin=0,
        stdout=1,
        stderr=2,
        console_size=None if options.detach else console.size(),
        seccomp=compile_profile(spec),
        keep=options.preserve_fds,
    )
    if options.detach and started.master is not None:
        console.hand_over(started.master, options.console_socket)
    if options.pid_file:
        write_pid(options.pid_file, started.pid)
    if options.detach:
        return 0
    if started.master is not None:
        console.relay(started.master)
    return wait(started.pid)


def _process(options: Namespace, spec: dict[str, Any]) -> dict[str, Any]:
    """What to run: from a file, or the container's own process with the flags' changes."""
    if options.process:
        with open(options.process) as file:
            result: dict[str, Any] = json.load(file)
        return result
    if not options.args:
        raise OciError("exec needs a command or --process")
    process = {**spec["process"], "args": options.args, "terminal": options.tty}
    process["env"] = [*(process.get("env") or []), *options.env]
    if options.cwd:
        process["cwd"] = options.cwd
    if options.user:
        uid, _, gid = options.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise OciError(f"--user {options.user}: only numbers, UID[:GID]")
        process["user"] = {"uid": int(uid), "gid": int(gid or 0)}
    if options.no_new_privs:
        process["noNewPrivileges"] = True
    if options.cap:
        sets = dict(process.get("capabilities") or {})
        for name in ("bounding", "effective", "permitted"):
            sets[name] = [*(sets.get(name) or []), *options.cap]
        process["capabilities"] = sets
    return process
