"""Health checks: Docker's rules for the verdict, and facts that say what came of each check."""

from __future__ import annotations

import pytest

from mooring.kit import subjects
from mooring.kit.models.container import HealthConfig
from mooring.kit.models.host import HealthChecked
from mooring.shim.agent import Agent
from mooring.shim.frames import STDOUT
from mooring.shim.health import SECOND, Check, Verdict, in_words

from .conftest import Facts, Shims, until
from .fakes import FakeShim

CHECK = Check(("true",), 30, 30, retries=3, start_period=10, start_interval=5)


@pytest.mark.parametrize(
    ("test", "command"),
    [
        ([], None),
        (["NONE"], None),
        (["CMD", "a", "b"], ("a", "b")),
        (["CMD-SHELL", "a b"], ("/bin/sh", "-c", "a b")),
    ],
)
def test_what_a_health_check_runs(test: list[str], command: tuple[str, ...] | None) -> None:
    check = Check.of(HealthConfig(test=test))
    assert (check.command if check else None) == command


def test_what_is_not_given_is_docker_s_default() -> None:
    check = Check.of(HealthConfig(test=["CMD", "true"]))
    assert check == Check(("true",), 30, 30, retries=3, start_period=0, start_interval=5)


def test_three_failures_in_a_row_are_unhealthy_and_one_success_is_healthy() -> None:
    verdict = Verdict()
    for expected in ("starting", "starting", "unhealthy"):
        verdict = verdict.after(1, 60, CHECK)
        assert verdict.status == expected
    assert verdict.after(0, 60, CHECK) == Verdict("healthy", 0)


def test_failures_in_the_start_period_do_not_count() -> None:
    assert Verdict().after(1, 9, CHECK) == Verdict()
    assert Verdict("healthy").after(1, 9, CHECK).streak == 1


def test_checks_are_more_frequent_in_the_start_period() -> None:
    assert Verdict().pause(9, CHECK) == 5
    assert Verdict().pause(11, CHECK) == 30
    assert Verdict("healthy").pause(9, CHECK) == 30


def begun(shim: Shims, **fields: object) -> FakeShim:
    """A container with a health check every 10 ms."""
    health = {"test": ["CMD", "probe"], "interval": SECOND // 100, "retries": 1, **fields}
    made = shim()
    made.directory.mkdir(parents=True)
    config = HealthConfig.model_validate(health)
    (made.directory / "healthcheck.msgpack").write_bytes(config.pack())
    return made.start()


async def test_each_result_is_told_with_its_verdict(
    agent: Agent, shim: Shims, facts: Facts
) -> None:
    one = begun(shim)
    for number, code, status in ((1, 0, "healthy"), (2, 7, "unhealthy")):
        id_ = f"health.{number}"
        await until((one.directory / "execs" / id_ / "log").exists)
        one.append(STDOUT, b"fine\n", id_)
        one.exec_exit(id_, code)
        fact = await facts.next(subjects.FACT_HEALTH, HealthChecked)
        assert (fact.status, fact.result.exit_code, fact.result.output) == (status, code, "fine\n")
    assert not [subject for subject, _ in facts.all if subject.endswith("exec.exited")]


async def test_a_check_that_takes_too_long_has_failed(
    agent: Agent, shim: Shims, facts: Facts
) -> None:
    begun(shim, timeout=SECOND // 1000)
    fact = await facts.next(subjects.FACT_HEALTH, HealthChecked)
    assert (fact.status, fact.result.exit_code) == ("unhealthy", -1)
    assert fact.result.output == "Health check exceeded timeout (1ms)"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.3, "300ms"), (1, "1s"), (2.5, "2.5s"), (60, "1m0s"), (90, "1m30s"), (3600, "1h0m0s")],
)
def test_a_duration_reads_as_in_docker(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
