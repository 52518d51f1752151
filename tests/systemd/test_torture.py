"""The torture of an installed engine in a systemd host; `make torture-systemd`: ten minutes."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from .host import REPOSITORY, Host

SECONDS = float(os.environ.get("MOORING_SYSTEMD_TORTURE_SECONDS", "120"))


@pytest.mark.timeout(SECONDS + 900)
def test_nothing_is_lost_doubled_or_left_behind(host: Host) -> None:
    seed = os.environ.get("MOORING_TEST_SEED", str(time.time_ns() % 100_000))
    log = host.root / "root/torture.log"
    command = (
        "env", f"PYTHONPATH={REPOSITORY}:{REPOSITORY}/demo", "python", "-m", "tests.torture",
        "--installed", "--seconds", str(SECONDS), "--seed", seed, "--log", "/root/torture.log",
    )  # fmt: skip
    try:
        print(host.run(*command, timeout=SECONDS + 800))
    finally:
        # The host's disk goes with it; this is what is looked at after a deviation.
        if log.exists():
            print(f"the log is in {shutil.copy(log, host.folder)}")
