"""What the units say, for where the program is."""

from __future__ import annotations

import pytest

from mooring.systemd.settings import harden

USUAL = "ProtectHome=yes\nPrivateTmp=yes"


@pytest.mark.parametrize(
    ("program", "directives"),
    [
        ({"/opt/mooring", "/usr"}, USUAL),
        ({"/tmp/clone/services", "/usr"}, f"{USUAL}\nBindReadOnlyPaths=/tmp/clone/services"),
        (
            {"/root/venv", "/home/me/clone"},
            "ProtectHome=tmpfs\nPrivateTmp=yes\n"
            "BindReadOnlyPaths=/home/me/clone\nBindReadOnlyPaths=/root/venv",
        ),
    ],
)
def test_services_see_their_program_wherever_it_is(program: set[str], directives: str) -> None:
    assert harden(USUAL, program) == directives
