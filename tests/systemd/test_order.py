"""In which order an upgrade replaces what."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest

from mooring.kit.config import Settings
from mooring.kit.models.host import ShimsRenewed
from mooring.systemd import install
from mooring.systemd.settings import Layout


class FakeManager:
    """Notes what is restarted."""

    done: list[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def reload(self) -> None:
        """See Manager."""

    def enable(self, units: object) -> None:
        """See Manager."""

    def start(self, unit: str) -> None:
        """See Manager."""

    def restart(self, unit: str) -> None:
        """See Manager."""
        self.done.append(unit.removeprefix("mooring-").removesuffix(".service"))


def test_the_pauses_that_agent_and_gateway_make_for_clients_are_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they had been: 0.9 instead of 0.5 s without output."""
    done: list[str] = []

    def renew(settings: Settings, *, every: bool) -> ShimsRenewed:
        done.append("shims")
        return ShimsRenewed()

    monkeypatch.setattr(FakeManager, "done", done, raising=False)
    monkeypatch.setattr(install, "Manager", FakeManager)
    monkeypatch.setattr(install, "_check_host", lambda: None)
    monkeypatch.setattr(install, "compile_program", lambda: None)
    monkeypatch.setattr("mooring.systemd.shims.renew", renew)
    config = tmp_path / "mooring.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    install.replace(Layout(tmp_path / "usr"), lambda _: None, config)
    assert done[-1] == "gateway" and done[done.index("shim-agent") + 1] != "gateway"
    # Of older code are those that the worker of before has made, and the agent must know how.
    assert done.index("shims") > max(done.index("runtime"), done.index("shim-agent"))
