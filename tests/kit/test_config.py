"""Settings: where they come from, which wins, and errors that name the key."""

from pathlib import Path

import pytest

from mooring.kit.config import ConfigError, Settings, load, parse_host


def state(tmp_path: Path) -> dict[str, object]:
    return {"state_dir": tmp_path / "state", "run_dir": tmp_path / "run"}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mooring.toml"
    file.write_text('log_level = "error"\nwarm_shims = 1\nlog_max_files = 3\n')
    environ = {"MOORING_LOG_LEVEL": "warning", "MOORING_WARM_SHIMS": "2"}
    settings = load({**state(tmp_path), "log_level": "debug"}, environ=environ, file=file)
    assert settings.log_level == "debug"
    assert settings.warm_shims == 2
    assert settings.log_max_files == 3


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    settings = load({**state(tmp_path), "warm_shims": None}, environ={"MOORING_WARM_SHIMS": "2"})
    assert settings.warm_shims == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log_level = 'loud'", "log_level"),
        ("warm_shims = -1", "warm_shims"),
        ("warm_shims = 'many'", "warm_shims"),
        ("colour = 'red'", "colour: unknown setting"),
        ("state_dir = 'here'", "state_dir: must be an absolute path"),
        ("host = ['http://x']", "host: .*neither"),
        ("bridge_subnet = '10.0.0.0/99'", "bridge_subnet"),
        ("node_id = 'a b'", "node_id"),
        ("host = ", "config: cannot read"),
    ],
)
def test_a_wrong_value_in_the_file_is_reported_with_key_and_file(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "mooring.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(None, environ={}, file=file)
    assert str(file) in str(caught.value)


def test_a_wrong_variable_is_reported_as_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"request_timeout: .* \(environment\)"):
        load(state(tmp_path), environ={"MOORING_REQUEST_TIMEOUT": "soon"})


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(state(tmp_path), environ={"MOORING_CONFIG": str(tmp_path / "absent.toml")})


def test_the_node_id_is_made_once(tmp_path: Path) -> None:
    first = load(state(tmp_path), environ={})
    second = load(state(tmp_path), environ={})
    assert first.node_id
    assert first.node_id == second.node_id


def test_a_state_dir_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="state_dir"):
        load({"state_dir": tmp_path / "file" / "state"}, environ={})


def test_the_default_socket_is_in_the_run_directory(tmp_path: Path) -> None:
    assert load(state(tmp_path), environ={}).host == [f"unix://{tmp_path}/run/docker.sock"]
    assert Settings().host == ["unix:///run/mooring/docker.sock"]


def test_settings_go_through_the_environment_of_a_child_unchanged(tmp_path: Path) -> None:
    overrides = {
        **state(tmp_path),
        "host": ["unix:///a.sock", "tcp://[::1]:2375"],
        "timings": True,
        "tls_ca": "/etc/ca.pem",
        "nats_credentials": None,
    }
    settings = load(overrides, environ={})
    assert load(None, environ=settings.environment()) == settings


def test_engines_of_different_directories_have_different_names() -> None:
    names = {Settings(state_dir=Path(path)).instance for path in ("/a", "/b", "/var/lib/mooring")}
    assert len(names) == 3
    assert "mooring" in names


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("unix:///run/x.sock", ("unix", "/run/x.sock", 0)),
        ("tcp://127.0.0.1:2376", ("tcp", "127.0.0.1", 2376)),
        ("tcp://[::1]:80", ("tcp", "::1", 80)),
    ],
)
def test_an_address_is_taken_apart(address: str, parts: tuple[str, str, int]) -> None:
    assert parse_host(address) == parts


@pytest.mark.parametrize(
    "address", ["", "unix://x", "tcp://:80", "tcp://a:0", "tcp://a:70000", "x"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        parse_host(address)
