"""What the worker says of its host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooring.kit.config import load
from mooring.runtime import node
from mooring.runtime.initbinary import is_static


def test_every_check_gives_a_finding_and_what_is_missing_has_a_cost() -> None:
    findings = node.examine()
    assert len({finding.name for finding in findings}) == len(findings) > 10
    for finding in findings:
        assert finding.detail
        assert finding.ok or finding.cost


def test_the_record_of_a_host_names_its_kernel_and_its_means(tmp_path: Path) -> None:
    settings = load({"state_dir": tmp_path, "node_id": "here"}, environ={})
    record = node.describe(settings)
    assert record.id == "here"
    assert record.kernel == os.uname().release
    assert record.cpus >= 1
    assert record.memory > 1 << 26
    assert record.cgroup_version in ("1", "2")
    for directory, type_ in (("/proc", "proc"), (tmp_path / "no", "")):
        settings = load({"state_dir": directory, "node_id": "here"}, environ={})
        assert node.describe(settings).filesystem == type_


@pytest.mark.kernel
def test_the_facts_are_those_of_this_process() -> None:
    facts = node.facts()
    assert "CAP_CHOWN" in facts.capabilities
    assert "nofile" in facts.rlimits


def test_a_static_binary_is_told_from_a_dynamic_one(tmp_path: Path) -> None:
    assert not is_static("/bin/sh")
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert not is_static(str(tmp_path / "script"))
    busybox = Path("/bin/busybox")
    if busybox.exists():
        assert is_static(str(busybox))
