"""The worker with real containers: what it starts, refuses, repeats and leaves behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mooring.kit.ending import ending, unended
from mooring.kit.errors import Conflict, InvalidParameter, NotFound
from mooring.kit.models.container import MountPoint

from .conftest import Worker, until

pytestmark = pytest.mark.kernel


async def test_a_container_runs_and_nothing_is_left_of_it(worker: Worker) -> None:
    record = worker.record("sh", "-c", "echo $FOO; id -u; exit 3", env=["FOO=bar"], user="app")
    started = await worker.run(record)
    assert started.pid > 0
    assert (await worker.exited(record.id))["exit_code"] == 3
    assert worker.output(record.id) == "bar\n1000\n"
    await worker.release(record.id)
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_a_start_that_is_repeated_answers_with_the_run_that_is_there(worker: Worker) -> None:
    record = worker.record("sleep", "1000", host={"network_mode": "bridge"})
    first = await worker.run(record)
    second = await worker.run(record)
    assert second == first
    assert second.network.endpoints["bridge"].ip_address


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("nope", 127, 'exec: "nope": executable file not found in $PATH'),
        ("/nope", 127, "no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
        ("/etc", 126, ""),
    ],
)
async def test_a_program_that_cannot_be_executed_is_an_answer_with_its_exit_code(
    worker: Worker, program: str, code: int, words: str
) -> None:
    record = worker.record(program)
    answer = await worker.run(record)
    assert answer.exit_code == code
    assert words in answer.error
    # The same run may be tried again, and a removal finds all of it.
    assert (await worker.run(record)).exit_code == code
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_a_container_that_runs_is_neither_released_nor_removed(worker: Worker) -> None:
    record = worker.record("sleep", "1000")
    started = await worker.run(record)
    with pytest.raises(Conflict, match="is running"):
        await worker.release(record.id)
    with pytest.raises(Conflict, match="is running"):
        await worker.remove(record.id)
    with pytest.raises(Conflict, match="is running"):
        await worker.run(record, run=2)
    assert Path(f"/proc/{started.pid}").exists()


async def test_a_start_that_comes_too_late_is_not_done_again(worker: Worker) -> None:
    record = worker.record("echo", "once")
    await worker.run(record)
    await worker.exited(record.id)
    await worker.release(record.id)
    await until(lambda: not worker.run_directory(record.id).exists())
    assert (await worker.run(record)).over
    assert worker.output(record.id) == "once\n"
    await worker.remove(record.id)
    with pytest.raises(NotFound):
        await worker.run(record)
    with pytest.raises(NotFound):
        await worker.run(record, run=2)


async def test_commands_about_what_is_gone_are_answered_as_done(worker: Worker) -> None:
    record = worker.record("true")
    await worker.release(record.id)
    await worker.remove(record.id)
    await worker.remove(record.id)


async def test_a_restart_repeats_the_last_start(worker: Worker) -> None:
    script = "echo run; cat /file; echo x >> /file"
    record = worker.record("sh", "-c", script, host={"restart_policy": {"name": "always"}})
    await worker.run(record)
    await worker.exited(record.id)
    await worker.restart(record.id, 2)
    await worker.exited(record.id, 2)
    assert worker.output(record.id).count("run\n") == 2
    assert worker.output(record.id).endswith("x\n")
    with pytest.raises(NotFound):
        await worker.restart("f" * 64, 1)


async def test_a_restart_may_come_the_moment_the_last_run_ends(worker: Worker) -> None:
    record = worker.record("true", host={"restart_policy": {"name": "always"}})
    await worker.run(record)
    for run in range(2, 12):
        await worker.exited(record.id, run - 1)
        await worker.restart(record.id, run)
    await worker.exited(record.id, 11)
    await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_many_starts_at_once(worker: Worker) -> None:
    records = [worker.record("sh", "-c", f"echo {number}") for number in range(24)]
    await asyncio.gather(*map(worker.run, records))
    for number, record in enumerate(records):
        await worker.exited(record.id)
        assert worker.output(record.id) == f"{number}\n"
        await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_a_container_joins_the_network_and_names_of_another(worker: Worker) -> None:
    one = worker.record("sleep", "1000", hostname="one", host={"network_mode": "bridge"})
    address = (await worker.run(one)).network.endpoints["bridge"].ip_address
    script = "hostname; ip -4 addr show eth0; cat /etc/hosts"
    mode = "container:web"
    two = worker.record("sh", "-c", script, host={"network_mode": mode})
    await worker.run(two, peers={"web": one.id})
    await worker.exited(two.id)
    assert worker.output(two.id).startswith("one\n")
    assert f"inet {address}/" in worker.output(two.id)
    assert f"{address}\tone\n" in worker.output(two.id)
    await worker.kill_container(one.id)
    three = worker.record("true", host={"network_mode": mode})
    with pytest.raises(Conflict, match="cannot join network of a non running container: web"):
        await worker.run(three, peers={"web": one.id})


async def test_shared_memory_is_shared_by_those_who_join_it(worker: Worker) -> None:
    one = worker.record(
        "sh", "-c", "echo hi > /dev/shm/x; sleep 1000", host={"ipc_mode": "shareable"}
    )
    await worker.run(one)
    shared = worker.run_dir / "shm" / one.id / "x"
    await until(lambda: shared.exists() and shared.read_text())
    two = worker.record("cat", "/dev/shm/x", host={"ipc_mode": f"container:{one.id}"})
    await worker.run(two)
    await worker.exited(two.id)
    assert worker.output(two.id) == "hi\n"
    three = worker.record("true", host={"ipc_mode": f"container:{two.id}"})
    with pytest.raises(Conflict, match="cannot join IPC of a non running container"):
        await worker.run(three)
    await worker.kill_container(one.id)
    for record in (one, two, three):
        await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_an_option_that_the_host_refuses_leaves_nothing(worker: Worker) -> None:
    missing = MountPoint(
        type="bind", source="/nowhere/at/all", destination="/x", create_source=False
    )
    record = worker.record("true")
    record.mounts = [missing]
    with pytest.raises(InvalidParameter, match="bind source path does not exist: /nowhere"):
        await worker.run(record)
    await worker.remove(record.id)
    for host, error, words in (
        ({"network_mode": "mine"}, NotFound, "network mine not found"),
        ({"devices": [{"path_on_host": "/dev/nowhere"}]}, InvalidParameter, "no such file"),
        ({"nano_cpus": 10**15}, InvalidParameter, "Range of CPUs is from 0.01 to"),
    ):
        record = worker.record("true", host=host)
        with pytest.raises(error, match=words):
            await worker.run(record)
        await worker.remove(record.id)
    await until(lambda: not worker.leftovers())


async def test_a_killed_worker_changes_nothing_for_a_container(worker: Worker) -> None:
    record = worker.record("sleep", "1000", host={"network_mode": "bridge"})
    before = await worker.run(record)
    worker.kill()
    after = await worker.run(record)
    assert after == before
    assert worker.deaths == 1
    assert Path(f"/proc/{before.pid}").exists()
    other = worker.record("ip", "-4", "addr", host={"network_mode": "bridge"})
    address = (await worker.run(other)).network.endpoints["bridge"].ip_address
    assert address != before.network.endpoints["bridge"].ip_address


async def test_a_killed_launcher_is_started_again(worker: Worker) -> None:
    first = worker.record("sleep", "1000")
    started = await worker.run(first)
    for child in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text() == "mooring-launch\n":
            os.kill(int(child), 9)
    records = [worker.record("true") for _ in range(12)]
    await asyncio.gather(*map(worker.run, records))
    assert Path(f"/proc/{started.pid}").exists()
    assert worker.deaths == 0


async def test_a_repeated_start_spares_the_run_that_has_the_cgroup_of_the_one_before(
    worker: Worker,
) -> None:
    record = worker.record("/bin/sleep", "1000")
    await worker.run(record)
    await worker.kill_container(record.id)
    # Nobody has released it: its directory, with the name of the cgroup, is still there.
    begun = await worker.run(record, run=2)
    assert worker.run_directory(record.id).exists()
    again = await worker.run(record, run=2)
    assert again.pid == begun.pid
    assert not (worker.run_directory(record.id, 2) / "exit.json").exists()
    assert "sleep" in Path(f"/proc/{begun.pid}/cmdline").read_text()
    await worker.kill_container(record.id, 2)
    await worker.release(record.id, 2)
    await worker.remove(record.id)


async def test_a_repeated_start_of_a_run_that_was_followed_by_another_is_answered(
    worker: Worker,
) -> None:
    record = worker.record("true", host={"restart_policy": {"name": "always"}})
    begun = await worker.run(record)
    await worker.exited(record.id)
    await worker.restart(record.id, 2)
    again = await worker.run(record)
    assert (again.pid, again.started_ns) == (begun.pid, begun.started_ns)
    await worker.exited(record.id, 2)
    assert (await worker.run(record)).pid == begun.pid
    await worker.release(record.id, 2)
    await worker.remove(record.id)


async def test_no_container_is_started_while_the_engine_is_stopped_with_all_of_them(
    worker: Worker,
) -> None:
    before, record = worker.record("sleep", "1000"), worker.record("true")
    begun = await worker.run(before)
    with ending(worker.settings.run_dir):
        with pytest.raises(Conflict, match="the engine is being stopped"):
            await worker.run(record)
        assert unended(worker.settings.run_dir) == [f"{before.id}.1"]
        # Asked for again, what was done is answered all the same.
        assert (await worker.run(before)).pid == begun.pid
    await worker.run(record)
    await worker.exited(record.id)
    await worker.kill_container(before.id)
    for made in (record, before):
        await worker.release(made.id)
        await worker.remove(made.id)
