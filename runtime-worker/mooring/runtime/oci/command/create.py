"""create, start, run: from a bundle to a process."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from mooring.runtime.oci.container import Running
from mooring.runtime.oci.container import run as run_container
from mooring.runtime.oci.errors import OciError, because
from mooring.runtime.oci.hooks import run_hooks

from . import console
from .manage import destroy
from .profile import compile_profile
from .store import Container, Store, locked, start_time


def load(bundle: Path) -> dict[str, Any]:
    """config.json of a bundle; OciError if there is none or it is not JSON."""
    try:
        spec: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    except OSError as error:
        raise because(f"cannot read {bundle}/config.json", error) from error
    except ValueError as error:
        raise OciError(f"{bundle}/config.json is not JSON: {error}") from error
    if not str(spec.get("ociVersion") or "").startswith("1."):
        raise OciError(f"unsupported ociVersion {spec.get('ociVersion')!r}")
    return spec


def cgroup_path(spec: dict[str, Any], name: str, systemd: bool) -> str:
    """Where the container is to be: linux.cgroupsPath, or its own name at the root."""
    path: str = (spec.get("linux") or {}).get("cgroupsPath") or f"/{name}"
    if systemd or path.count(":") == 2:
        raise OciError("the systemd cgroup driver is not supported: use cgroupfs paths")
    return os.path.normpath(f"/{path}").replace("//", "/")


def create(options: Namespace) -> int:
    """Everything up to, and not including, the program's execution."""
    _create(options, detached=True)
    return 0


def start(options: Namespace) -> int:
    """Let a created container execute its program."""
    container = Store(options.root).find(options.id)
    with locked(container):
        _start(container)
    return 0


def run(options: Namespace) -> int:
    """create and start; in the foreground also wait, and delete."""
    container, running = _create(options, detached=options.detach)
    try:
        with locked(container):
            _start(container)
    except OciError:
        destroy(container, force=True)
        raise
    if options.detach:
        return 0
    if running.master is not None:
        console.relay(running.master)
    code = wait(running.pid)
    destroy(container, force=True)
    return code


def wait(pid: int) -> int:
    """The exit code of a child as a shell would have it."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _create(options: Namespace, *, detached: bool) -> tuple[Container, Running]:
    bundle = Path(options.bundle).absolute()
    spec = load(bundle)
    terminal = bool((spec.get("process") or {}).get("terminal"))
    console.check(terminal, detached, options.console_socket)
    path = cgroup_path(spec, options.id, options.systemd_cgroup)
    container = Store(options.root).create(options.id, bundle, spec, path)
    try:
        return container, _fill(container, spec, options, detached=detached)
    except BaseException:
        container.remove()
        raise


def _fill(
    container: Container, spec: dict[str, Any], options: Namespace, *, detached: bool
) -> Running:
    os.mkfifo(container.fifo, 0o600)
    fifo = os.open(container.fifo, os.O_RDWR | os.O_CLOEXEC)

    def before_exec(pid: int) -> None:
        container.pid = container.state["pid"] = pid
        container.state["pidStart"] = start_time(pid)
        container.save()

    try:
        running = run_container(
            spec,
            bundle=container.bundle,
            rootfs=None,
            cgroup_path=container.state["cgroup"],
            seccomp=compile_profile(spec),
            stub=None,
            stdin=0,
            stdout=1,
            stderr=2,
            console_size=console.size() if not detached else None,
            before_exec=before_exec,
            state=json.dumps(container.public("creating") | {"pid": 0}),
            fifo=fifo,
            keep=options.preserve_fds,
        )
    finally:
        os.close(fifo)
    try:
        if detached and running.master is not None:
            console.hand_over(running.master, options.console_socket)
        if options.pid_file:
            write_pid(options.pid_file, running.pid)
    except BaseException:
        destroy(container, force=True)
        raise
    return running


def write_pid(path: str, pid: int) -> None:
    """In one step: readers wait for the file to appear."""
    part = f"{path}.part"
    try:
        Path(part).write_text(str(pid))
        os.rename(part, path)
    except OSError as error:
        raise because(f"cannot write {path}", error) from error


def _start(container: Container) -> None:
    status = container.status()
    if status != "created":
        raise OciError(f"cannot start a container that is {status}: it needs to be created")
    try:
        fifo = os.open(container.fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(fifo, b"0")
        os.close(fifo)
    except OSError as error:
        raise because("cannot start: the container's first process is gone", error) from error
    container.fifo.unlink()
    hooks = (container.spec.get("hooks") or {}).get("poststart") or []
    # The program runs already: a hook that fails can only be reported.
    run_hooks("poststart", hooks, json.dumps(container.public("running")))
