"""The torture in embedded mode, as long as CI has time for; `make torture` is ten minutes."""

from __future__ import annotations

import os
import time

import pytest

from tests.engine.harness import engine

from .torture import KINDS, torture

pytestmark = [pytest.mark.kernel, pytest.mark.fault, pytest.mark.timeout(900)]


def test_nothing_is_lost_doubled_or_left_behind() -> None:
    seconds = float(os.environ.get("MOORING_TORTURE_SECONDS", "60"))
    seed = int(os.environ.get("MOORING_TEST_SEED", time.time_ns() % 100_000))
    with engine() as made:
        report = torture(made, seconds, 1, seed)
        print(report)
        assert not report.wrong, f"{report}\n{made.logs()[-5000:]}"
    assert all(report.counts[kind.kind] for kind in KINDS)
