"""Texts of others are shown as they are: brackets in them mean nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import COMMAND, REFUSAL

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "COLUMNS": "200"}


def command(host: str, *args: str) -> list[str]:
    return [sys.executable, "-m", "mooring.cli", *args[:1], "--host", host, *args[1:]]


def mooring(host: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(host, *args), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_a_container_s_command_and_image(host: str) -> None:
    done = mooring(host, "ps")
    assert (done.returncode, done.stderr) == (0, "")
    assert COMMAND in done.stdout and "bb[red]" in done.stdout


@pytest.mark.parametrize("command", ["rm", "stop"])
def test_what_the_engine_says_against_it(host: str, command: str) -> None:
    done = mooring(host, command, "s")
    assert done.returncode
    assert REFUSAL in done.stderr


def test_an_exec_ends_also_while_nothing_comes_from_stdin(host: str) -> None:
    """Whoever sat at a terminal had to press a key."""
    with subprocess.Popen(
        command(host, "exec", "-i", "web", "true"),
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"word\n"
        try:
            assert process.wait(20) == 5
        finally:
            process.kill()
