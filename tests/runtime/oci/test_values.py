"""The parts that only decide: mount options, limits, device programs, capabilities."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.kit import procpaths
from mooring.runtime import defaults
from mooring.runtime.oci import capabilities, cgroup1, cgroup2, devicefilter, mountspec, template
from mooring.runtime.oci.errors import OciError
from mooring.runtime.oci.mountapi import (
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_SLAVE,
)
from mooring.runtime.oci.namespaces import Namespaces


def parse(*options: str, kind: str = "tmpfs") -> mountspec.Mount:
    mount = {"destination": "/x", "type": kind, "source": "s", "options": list(options)}
    return mountspec.parse(mount)


def test_a_later_option_wins() -> None:
    assert parse("ro", "rw").set & MOUNT_ATTR_RDONLY == 0
    assert parse("rw", "ro").set & MOUNT_ATTR_RDONLY


def test_recursive_attributes_are_kept_apart() -> None:
    mount = parse("rro", "nosuid", "noatime")
    assert mount.recursive_set == MOUNT_ATTR_RDONLY
    assert mount.set == MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOATIME


def test_what_is_no_attribute_is_for_the_filesystem() -> None:
    assert parse("size=64k", "nosuid", "noswap").options == [("size", "64k"), ("noswap", None)]


def test_propagation_is_read_with_its_depth() -> None:
    assert parse("rslave").propagation == [(MS_SLAVE, True)]
    assert parse("slave").propagation == [(MS_SLAVE, False)]


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ({"type": "tmpfs"}, "no destination"),
        ({"destination": "/x"}, "no type"),
        ({"destination": "/x", "type": "bind"}, "no source"),
        ({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}, "idmap"),
        ({"destination": "/x", "type": "bind", "source": "/y", "options": ["what"]}, "what"),
        ({"destination": "/x", "type": "bind", "source": "/y", "uidMappings": [1]}, "ID-mapped"),
    ],
)
def test_an_impossible_mount_is_refused(mount: dict[str, Any], words: str) -> None:
    with pytest.raises(OciError, match=words):
        mountspec.parse(mount)


def test_the_template_is_what_the_engine_asks_for() -> None:
    assert template.same(defaults.shm(defaults.SHM_SIZE), template.SHM)
    assert template.same(defaults.cgroup(writable=False), template.CGROUP)
    masked = {path for path in procpaths.MASKED_PATHS if path.startswith("/proc")}
    assert masked == template.MASKED_IN_PROC
    assert set(procpaths.READONLY_PATHS) == template.READONLY_IN_PROC


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"allow": False, "access": "rwm"}, "a"),
        ({"type": "c", "major": 1, "minor": 3, "access": "rw"}, "c 1:3 rw"),
        ({"type": "b", "major": 8, "access": "m"}, "b 8:* m"),
        ({"type": "c", "major": -1, "minor": -1}, "c *:* rwm"),
    ],
)
def test_device_rules_on_v1(rule: dict[str, Any], line: str) -> None:
    assert cgroup1.device_rule(rule) == line


@pytest.mark.parametrize(
    ("resources", "settings"),
    [
        (
            {"memory": {"limit": 100, "swap": 150, "reservation": 50}},
            {"memory.swap.max": 50, "memory.max": 100, "memory.low": 50},
        ),
        ({"memory": {"limit": -1, "swap": -1}}, {"memory.swap.max": "max", "memory.max": "max"}),
        ({"cpu": {"quota": 5000, "period": 10000}}, {"cpu.max": "5000 10000"}),
        ({"cpu": {"period": 10000}}, {"cpu.max": "max 10000"}),
        ({"cpu": {"shares": 1024, "cpus": "0-1"}}, {"cpu.weight": 39, "cpuset.cpus": "0-1"}),
        ({"pids": {"limit": 0}}, {"pids.max": "max"}),
        ({"pids": {"limit": 7}}, {"pids.max": 7}),
        ({"unified": {"memory.high": "5"}}, {"memory.high": "5"}),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}]}},
            {"io.max": "8:0 rbps=9"},
        ),
        ({"blockIO": {"weight": 10}}, {"io.weight": "default 1"}),
        ({"blockIO": {"weight": 1000}}, {"io.weight": "default 10000"}),
        (
            {"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 505}]}},
            {"io.weight": "8:0 5000"},
        ),
    ],
)
def test_limits_on_v2(resources: dict[str, Any], settings: dict[str, object]) -> None:
    assert dict(cgroup2._settings(resources)) == settings


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (0, 1)])
def test_shares_become_weights(shares: int, weight: int) -> None:
    assert cgroup2.weight(shares) == weight


def test_swap_without_memory_is_refused_on_v2() -> None:
    with pytest.raises(OciError, match="needs a memory limit"):
        dict(cgroup2._settings({"memory": {"swap": 5}}))


class Machine:
    """As much of BPF as a device program needs: what would the kernel answer?"""

    def __init__(self, program: bytes) -> None:
        self.code = [program[at : at + 8] for at in range(0, len(program), 8)]

    def ask(self, kind: str, major: int, minor: int, access: str) -> bool:
        bits = sum(devicefilter._ACCESS[letter] for letter in access)
        context = [bits << 16 | devicefilter._KINDS[kind], major, minor]
        registers = [0] * 10
        at = 0
        while True:
            code, pair = self.code[at][0], self.code[at][1]
            to, source = pair & 15, pair >> 4
            offset = int.from_bytes(self.code[at][2:4], "little", signed=True)
            value = int.from_bytes(self.code[at][4:8], "little", signed=True)
            at += 1
            match code:
                case 0x61:
                    registers[to] = context[offset // 4]
                case 0x54:
                    registers[to] &= value
                case 0x74:
                    registers[to] >>= value
                case 0xBF:
                    registers[to] = registers[source]
                case 0xB7:
                    registers[to] = value
                case 0x55 if registers[to] != value:
                    at += offset
                case 0x15 if registers[to] == value:
                    at += offset
                case 0x95:
                    return bool(registers[0])


RULES: list[dict[str, Any]] = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    {"allow": True, "type": "c", "major": 136, "access": "rw"},
    {"allow": False, "type": "c", "major": 136, "minor": 9, "access": "w"},
]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (("c", 1, 3, "rw"), True),
        (("c", 1, 4, "r"), False),
        (("c", 1, 4, "m"), True),
        (("c", 1, 4, "rm"), False),
        (("b", 1, 3, "r"), False),
        (("b", 8, 0, "m"), False),
        (("c", 136, 5, "rw"), True),
        (("c", 136, 9, "r"), True),
        (("c", 136, 9, "rw"), False),
    ],
)
def test_the_device_program_answers_by_the_last_rule_that_matches(
    question: tuple[str, int, int, str], answer: bool
) -> None:
    assert Machine(devicefilter.assemble(RULES)).ask(*question) is answer


def test_without_rules_nothing_is_allowed() -> None:
    assert not Machine(devicefilter.assemble([])).ask("c", 1, 3, "r")


@pytest.mark.kernel
def test_the_kernel_takes_the_device_program() -> None:
    import os

    os.close(devicefilter.load(devicefilter.assemble(template.DEVICE_RULES)))


def test_capabilities_have_the_kernels_numbers() -> None:
    assert capabilities.mask(["CAP_CHOWN", "CAP_NET_RAW"]) == 1 | 1 << 13
    assert capabilities.mask(["CAP_CHECKPOINT_RESTORE"]) == 1 << 40
    with pytest.raises(OciError, match="CAP_NOPE"):
        capabilities.mask(["CAP_NOPE"])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"type": "nope"}], "nope"),
        ([{"type": "mount"}, {"type": "mount"}], "twice"),
        ([{"type": "pid"}], "mount namespace"),
    ],
)
def test_impossible_namespaces_are_refused(entries: list[dict[str, str]], words: str) -> None:
    with pytest.raises(OciError, match=words):
        Namespaces({"linux": {"namespaces": entries}})
