"""What the units say, for where the program is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring.systemd.install import compile_program
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


def test_modules_are_compiled_for_services_that_may_not_write_there(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part/module.py").write_text("x = 1\n")
    (tmp_path / "part/broken.py").write_text("x =\n")
    compile_program([str(tmp_path), str(tmp_path / "there is none")])
    assert [path.name.split(".")[0] for path in tmp_path.rglob("*.pyc")] == ["module"]
