"""Limits as OCI values, against what a host can give."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import HostConfig
from mooring.runtime import devices
from mooring.runtime.limits import INFINITY, HostFacts, resources, rlimits

V1 = HostFacts(1, ("CAP_CHOWN",), 4, {"nofile": 1000, "core": -1})
V2 = HostFacts(2, ("CAP_SYS_RESOURCE",), 4, {"nofile": 1000})
MB = 1 << 20


def host(**fields: Any) -> HostConfig:
    return HostConfig.model_validate(fields)


def number(path: str) -> tuple[int, int]:
    return 8, int(path[-1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"memory": 64 * MB}, {"memory": {"limit": 64 * MB, "swap": 128 * MB}}),
        (
            {"memory": 64 * MB, "memory_swap": -1},
            {"memory": {"limit": 64 * MB, "swap": -1}},
        ),
        ({"memory_reservation": 6 * MB}, {"memory": {"reservation": 6 * MB}}),
        ({"nano_cpus": 1_500_000_000}, {"cpu": {"period": 100_000, "quota": 150_000}}),
        ({"cpu_shares": 5, "cpuset_cpus": "0-1"}, {"cpu": {"shares": 5, "cpus": "0-1"}}),
        ({"pids_limit": 7}, {"pids": {"limit": 7}}),
        ({"pids_limit": -1}, {}),
        ({"pids_limit": 0}, {}),
        (
            {"blkio_device_read_bps": [{"path": "/dev/sd3", "rate": 9}]},
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 3, "rate": 9}]}},
        ),
    ],
)
def test_resources(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert resources(host(**options), V1, number) == (expected, [])


def test_what_cgroup_v2_does_not_have_is_discarded_with_a_warning() -> None:
    found, warnings = resources(host(memory_swappiness=5, oom_kill_disable=True), V2, number)
    assert found == {}
    assert len(warnings) == 2


def test_a_block_weight_that_the_kernel_does_not_have_is_discarded_with_a_warning() -> None:
    facts = HostFacts(1, (), 4, blkio_weight=False)
    found, [warning] = resources(host(blkio_weight=100), facts, number)
    assert found == {}
    assert "Weight discarded" in warning


def test_more_cpus_than_the_host_has_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="there are only 4 CPUs available"):
        resources(host(nano_cpus=5_000_000_000), V1, number)


def test_ulimits_may_not_exceed_what_the_engine_may_grant() -> None:
    asked = host(ulimits=[{"name": "nofile", "soft": 5, "hard": 2000}])
    with pytest.raises(InvalidParameter, match="its own hard limit is 1000"):
        rlimits(asked, V1)
    assert rlimits(asked, V2) == [{"type": "RLIMIT_NOFILE", "hard": 2000, "soft": 5}]


def test_an_ulimit_without_a_bound_is_infinite() -> None:
    asked = host(ulimits=[{"name": "core", "soft": -1, "hard": -1}])
    assert rlimits(asked, V1) == [{"type": "RLIMIT_CORE", "hard": INFINITY, "soft": INFINITY}]


def test_a_device_is_given_with_its_number_and_a_rule() -> None:
    asked = host(
        devices=[
            {"path_on_host": "/dev/null", "path_in_container": "/dev/x", "cgroup_permissions": "r"}
        ]
    )
    [node], rules = devices.chosen(asked)
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/x", "c", 1, 3)
    assert rules[-1] == {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}
    assert rules[0] == {"allow": False, "access": "rwm"}


@pytest.mark.parametrize(
    ("path", "words"), [("/dev/nowhere", "no such file"), ("/etc/passwd", "not a device node")]
)
def test_what_is_no_device_is_refused(path: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        devices.chosen(host(devices=[{"path_on_host": path}]))


def test_a_privileged_container_gets_the_hosts_devices_but_not_its_terminals() -> None:
    nodes, rules = devices.chosen(host(privileged=True))
    paths = {node["path"] for node in nodes}
    assert "/dev/null" not in paths  # the runtime makes that one itself
    assert not [path for path in paths if path.startswith("/dev/pts")]
    assert rules == [{"allow": True, "access": "rwm"}]
