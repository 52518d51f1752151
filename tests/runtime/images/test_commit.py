"""What a committed image is, decided with values."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.runtime.images.changes import InvalidChange
from mooring.runtime.images.commit import Step, child_image, committed_config

OWN: dict[str, Any] = {
    "User": "me",
    "Env": ["PATH=/bin", "A=1"],
    "Cmd": ["sh"],
    "Entrypoint": None,
    "Labels": {"a": "1"},
    "ExposedPorts": {"80/tcp": {}},
    "WorkingDir": "/w",
}


def test_a_container_keeps_its_config_and_gets_the_changes() -> None:
    config = committed_config(None, OWN, ["ENV A=2 B=3", "LABEL b=2", "EXPOSE 81", "USER you"])
    assert config["Env"] == ["PATH=/bin", "A=2", "B=3"]
    assert config["Labels"] == {"a": "1", "b": "2"}
    assert set(config["ExposedPorts"]) == {"80/tcp", "81/tcp"}
    assert (config["User"], config["Cmd"], config["WorkingDir"]) == ("you", ["sh"], "/w")


def test_a_new_entry_point_takes_the_command_away_unless_that_comes_along() -> None:
    assert "Cmd" not in committed_config(None, OWN, ['ENTRYPOINT ["e"]'])
    config = committed_config(None, OWN, ["CMD x", 'ENTRYPOINT ["e"]'])
    assert config["Cmd"] == ["/bin/sh", "-c", "x"]


def test_a_config_that_is_given_is_filled_in_from_the_container() -> None:
    config = committed_config({"Env": ["A=9"], "Cmd": ["x"]}, OWN, [])
    assert config["Env"] == ["A=9", "PATH=/bin"]
    assert (config["Cmd"], config["User"], config["Labels"]) == (["x"], "me", {"a": "1"})


def test_a_health_check_is_completed_field_by_field() -> None:
    below = {"Test": ["CMD", "x"], "Interval": 5}
    config = committed_config({"Healthcheck": {"Interval": 7}}, {"Healthcheck": below}, [])
    assert config["Healthcheck"] == {"Test": ["CMD", "x"], "Interval": 7}


def test_an_instruction_that_is_no_change_is_refused() -> None:
    with pytest.raises(InvalidChange, match="copy is not a valid change command"):
        committed_config(None, OWN, ["COPY a b"])


def test_an_image_without_a_new_layer_has_an_empty_step() -> None:
    parent = {
        "architecture": "arm64", "os": "linux",
        "rootfs": {"diff_ids": ["sha256:1"]}, "history": [{"created_by": "base"}],
    }  # fmt: skip
    image = child_image(parent, {}, Step("sh", "me", "why"), "now", None)
    assert image["rootfs"]["diff_ids"] == ["sha256:1"]
    assert image["history"][-1] == {
        "created": "now", "author": "me", "created_by": "sh", "comment": "why",
        "empty_layer": True,
    }  # fmt: skip
    assert image["architecture"] == "arm64"
    assert parent["history"] == [{"created_by": "base"}]
