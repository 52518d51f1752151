"""How the process of a service begins, and how one that fails ends."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from mooring.kit import starting


@pytest.fixture
def pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[float]:
    """A service of the marked source, and the pauses that are made."""
    source = request.param
    (tmp_path / "a_service.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_service", raising=False)
    monkeypatch.setenv("MOORING_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MOORING_RUN_DIR", str(tmp_path / "run"))
    made: list[float] = []
    monkeypatch.setattr("mooring.kit.starting.time.sleep", made.append)
    monkeypatch.setattr("mooring.kit.log.setup", lambda *_: None)
    request.addfinalizer(gc.unfreeze)
    request.addfinalizer(gc.enable)
    return made


@pytest.mark.parametrize(
    "pauses",
    [
        "import mooring.no_such_module",
        "async def main(settings, service):\n    raise OSError('no space')",
    ],
    indirect=True,
)
def test_what_fails_by_itself_waits_before_it_ends(pauses: list[float]) -> None:
    with pytest.raises(SystemExit) as ended:
        starting.start("test", "a_service")
    assert ended.value.code == 1
    assert pauses == [starting.PAUSE]


@pytest.mark.parametrize(
    "pauses",
    [
        "import gc\nassert not gc.isenabled()\n"
        "async def main(settings, service):\n    assert gc.isenabled()",
    ],
    indirect=True,
)
def test_the_collector_is_off_for_the_imports_alone(pauses: list[float]) -> None:
    starting.start("test", "a_service")
    assert pauses == []
