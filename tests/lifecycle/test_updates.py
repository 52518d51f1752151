"""What `docker update` makes of a container's limits."""

from __future__ import annotations

import pytest

from mooring.kit.errors import Conflict, EngineError, InvalidParameter
from mooring.kit.models.container import HostConfig, RestartPolicy
from mooring.lifecycle.updates import merged

MB = 1 << 20
ALWAYS = RestartPolicy(name="always")


def test_what_is_not_named_stays() -> None:
    old = HostConfig(memory=64 * MB, cpu_shares=512, restart_policy=ALWAYS)
    assert merged(old, HostConfig(cpu_shares=256)) == old.model_copy(update={"cpu_shares": 256})


def test_memory_alone_leaves_the_limit_of_memory_and_swap() -> None:
    new = merged(HostConfig(memory=64 * MB), HostConfig(memory=100 * MB))
    assert (new.memory, new.memory_swap) == (100 * MB, 128 * MB)


def test_a_first_memory_limit_allows_as_much_swap() -> None:
    new = merged(HostConfig(), HostConfig(memory=100 * MB))
    assert (new.memory, new.memory_swap) == (100 * MB, 0)


@pytest.mark.parametrize(
    ("given", "limit"), [(None, None), (0, 0), (-1, -1), (5, 5)], ids=["unsaid", "0", "-1", "5"]
)
def test_a_pids_limit_may_be_taken_away(given: int | None, limit: int | None) -> None:
    expected = 100 if limit is None else limit
    assert merged(HostConfig(pids_limit=100), HostConfig(pids_limit=given)).pids_limit == expected


@pytest.mark.parametrize(
    ("old", "asked", "kind", "words"),
    [
        (
            HostConfig(memory=64 * MB, memory_swap=64 * MB),
            HostConfig(memory=65 * MB),
            Conflict,
            "Memory limit should be smaller than already set memoryswap limit",
        ),
        (
            HostConfig(nano_cpus=500_000_000),
            HostConfig(cpu_quota=5000),
            Conflict,
            "CPU Quota cannot be updated as NanoCPUs has already been set",
        ),
        (
            HostConfig(cpu_period=100_000),
            HostConfig(nano_cpus=500_000_000),
            Conflict,
            "NanoCPUs cannot be updated as CPU Period has already been set",
        ),
        (
            HostConfig(auto_remove=True),
            HostConfig(restart_policy=ALWAYS),
            InvalidParameter,
            "because AutoRemove is enabled for the container",
        ),
        (
            HostConfig(),
            HostConfig(restart_policy=RestartPolicy(name="sometimes")),
            InvalidParameter,
            "invalid restart policy: unknown policy 'sometimes'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    old: HostConfig, asked: HostConfig, kind: type[EngineError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        merged(old, asked)
