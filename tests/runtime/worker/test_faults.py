"""The worker, or a shim, killed at each step: afterwards it is as before or as after."""

from __future__ import annotations

import pytest

from .conftest import Worker, until

pytestmark = [pytest.mark.kernel, pytest.mark.fault]

START = ["sandbox", "prepared", "sent", "given", "written", "executed", "started"]
BY_A_HELPER = {"devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing"}]}
"""What a program (oci/job.py) can't do."""


@pytest.mark.parametrize(
    ("network", "point"),
    [
        *[("none", f"runtime.start.{step}") for step in START],
        *[("bridge", f"runtime.start.{step}") for step in ("sandbox", "given", "started")],
    ],
)
async def test_a_start_is_carried_out_once_whenever_the_worker_dies(
    worker: Worker, network: str, point: str
) -> None:
    record = worker.record("sh", "-c", "echo once; sleep 1000", host={"network_mode": network})
    worker.arm(point)
    started = await worker.run(record)
    assert worker.deaths == 1
    assert started.pid
    await until(lambda: worker.output(record.id))
    again = await worker.run(record)
    assert again == started
    assert worker.output(record.id) == "once\n"
    leases = list((worker.state / "network/leases").iterdir())
    assert len(leases) == (network == "bridge")
    await worker.kill_container(record.id)
    await worker.release(record.id)
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_a_start_with_a_helper_is_carried_out_once_as_well(worker: Worker) -> None:
    record = worker.record("sh", "-c", "echo once; sleep 1000", host=BY_A_HELPER)
    worker.arm("runtime.start.sent")
    started = await worker.run(record)
    assert worker.deaths == 1
    await until(lambda: worker.output(record.id))
    assert await worker.run(record) == started
    assert worker.output(record.id) == "once\n"
    await worker.kill_container(record.id)
    await worker.release(record.id)
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


@pytest.mark.parametrize("point", ["shim.started", "shim.before_exec"])
async def test_a_shim_that_dies_before_the_program_is_replaced(worker: Worker, point: str) -> None:
    record = worker.record("echo", "once", host=BY_A_HELPER)
    worker.arm(point)
    await worker.run(record)
    await worker.exited(record.id)
    assert worker.output(record.id) == "once\n"
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


@pytest.mark.parametrize("step", ["detached", "noted"])
async def test_a_release_is_finished(worker: Worker, step: str) -> None:
    record = worker.record("true", host={"network_mode": "bridge"})
    await worker.run(record)
    await worker.exited(record.id)
    worker.arm(f"runtime.release.{step}")
    await worker.release(record.id)
    assert worker.deaths == 1
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


@pytest.mark.parametrize("step", ["released", "trashed"])
async def test_a_removal_is_finished(worker: Worker, step: str) -> None:
    record = worker.record("true")
    await worker.run(record)
    await worker.exited(record.id)
    worker.arm(f"runtime.remove.{step}")
    await worker.remove(record.id)
    assert worker.deaths == 1
    await until(lambda: not worker.leftovers())
