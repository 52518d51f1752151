"""`mooring --help`, of every command."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from mooring.cli.__main__ import command_line

COMMANDS = sorted(typer.main.get_command(command_line()).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(command_line(), [command, "--help"])
    assert done.exit_code == 0, done.exception
    assert f"mooring {command}" in done.output or "Usage" in done.output
