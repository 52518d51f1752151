"""Runs that are made when their container is created: used by the start, taken back without one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from mooring.kit import subjects
from mooring.kit.models.container import ContainerRecord, MountPoint
from mooring.kit.models.host import HostStart

from .conftest import Worker, until

pytestmark = pytest.mark.kernel


async def prepare(worker: Worker, record: ContainerRecord) -> None:
    """RUNTIME_PREPARE, which is lost where nobody listens yet."""
    await worker.remove("0" * 64)
    subject = subjects.runtime(worker.settings.node_id, subjects.RUNTIME_PREPARE)
    await worker.bus.publish(subject, HostStart(record=record, image=worker.image(), run=1))


async def prepared(worker: Worker, record: ContainerRecord) -> None:
    """Prepare it, and wait until it waits."""
    await prepare(worker, record)
    await until((worker.run_directory(record.id) / "shim.sock").exists)


def waiting(worker: Worker, record: ContainerRecord) -> list[Path]:
    """The processes in the container's cgroup."""
    groups = worker.cgroups(record.id)
    return [Path(f"/proc/{p}") for g in groups for p in (g / "cgroup.procs").read_text().split()]


@pytest.mark.parametrize("network", ["none", "bridge"])
async def test_a_start_uses_what_was_made_when_the_container_was_created(
    worker: Worker, network: str
) -> None:
    record = worker.record(
        "sh", "-c", "echo $PPID; hostname; exit 3", host={"network_mode": network}
    )
    await prepared(worker, record)
    await until(lambda: waiting(worker, record))
    (process,) = set(waiting(worker, record))
    assert (process / "comm").read_text() == "mooring-init\n"
    assert worker.output(record.id) == ""
    started = await worker.run(record)
    assert started.pid == int(process.name)
    assert bool(started.network.endpoints[network].ip_address) == (network == "bridge")
    assert (await worker.exited(record.id))["exit_code"] == 3
    assert worker.output(record.id) == f"0\n{record.id[:12]}\n"
    await worker.release(record.id)
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_what_nobody_starts_is_taken_back(worker: Worker) -> None:
    record = worker.record("true", host={"network_mode": "bridge"})
    await prepared(worker, record)
    await until(lambda: not worker.run_directory(record.id).exists())
    await until(lambda: not waiting(worker, record))
    await until(lambda: not list((worker.state / "network/leases").iterdir()))
    # And can be started all the same.
    assert (await worker.run(record)).pid
    await worker.exited(record.id)
    await worker.release(record.id)
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_a_removal_takes_it_back_at_once(worker: Worker) -> None:
    record = worker.record("true", host={"network_mode": "bridge"})
    await prepared(worker, record)
    await worker.remove(record.id)
    assert not worker.run_directory(record.id).exists()
    await until(lambda: not worker.leftovers())


async def test_a_container_that_was_changed_since_is_made_again(worker: Worker) -> None:
    record = worker.record("hostname")
    await prepared(worker, record)
    changed = record.model_copy(
        update={"config": record.config.model_copy(update={"hostname": "x"})}
    )
    await worker.run(changed)
    await worker.exited(record.id)
    assert worker.output(record.id) == "x\n"


async def test_a_process_that_died_meanwhile_is_replaced(worker: Worker) -> None:
    record = worker.record("echo", "out")
    await prepared(worker, record)
    await until(lambda: waiting(worker, record))
    (process,) = set(waiting(worker, record))
    os.kill(int(process.name), signal.SIGKILL)
    started = await worker.run(record)
    assert started.pid != int(process.name)
    await worker.exited(record.id)
    assert worker.output(record.id) == "out\n"


async def test_a_program_that_is_not_there_has_the_same_words(worker: Worker) -> None:
    record = worker.record("nope")
    await prepared(worker, record)
    answer = await worker.run(record)
    assert answer.exit_code == 127
    assert 'exec: "nope": executable file not found in $PATH' in answer.error


async def test_a_killed_worker_leaves_nothing_of_it(worker: Worker) -> None:
    record = worker.record("echo", "out", host={"network_mode": "bridge"})
    await prepared(worker, record)
    await until(lambda: waiting(worker, record))
    worker.kill()
    await until(lambda: worker.deaths == 1)
    # Asked for while it is away: by then nothing was prepared.
    await worker.run(record)
    await worker.exited(record.id)
    assert worker.output(record.id) == "out\n"
    await worker.release(record.id)
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_what_somebody_could_change_is_not_made_early(worker: Worker, tmp_path: Path) -> None:
    record = worker.record("cat", "/file")
    bind = MountPoint(type="bind", source=str(tmp_path), destination="/bound", rw=True)
    await prepare(worker, record.model_copy(update={"mounts": [bind]}))
    other = worker.record("true")
    await prepared(worker, other)
    assert not worker.run_directory(record.id).exists()


async def test_creates_that_nobody_starts_are_not_prepared_for_long(worker: Worker) -> None:
    records = [worker.record("true") for _ in range(3)]
    for record in records:
        await prepared(worker, record)
        await worker.remove(record.id)
    later = worker.record("true")
    await prepare(worker, later)
    # A start soon after its create would have used one: the next ones are made again.
    assert time.time_ns() - later.created_ns < 2e9
    await worker.run(later)
    await worker.exited(later.id)
    again = worker.record("true")
    await prepared(worker, again)
    await asyncio.gather(*(worker.remove(record.id) for record in (*records, again)))
