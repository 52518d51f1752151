"""JSON bodies into commands, and the words for those that do not fit."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.gateway.schema.create import create_request, exec_config
from mooring.gateway.schema.decode import parse
from mooring.kit.errors import EngineError, InvalidParameter, NotSupported
from mooring.kit.models.network import EndpointSettings


def create(body: dict[str, Any]) -> Any:
    return create_request(body, "web", "")


@pytest.mark.parametrize("limit", [0, -1, -5])
def test_what_asks_for_no_limit_is_not_recorded(limit: int) -> None:
    host = create({"Image": "bb", "HostConfig": {"PidsLimit": limit, "MemorySwappiness": -1}})
    assert (host.host_config.pids_limit, host.host_config.memory_swappiness) == (None, None)


def test_a_whole_body_becomes_a_command() -> None:
    command = create(
        {
            "Image": "bb",
            "Cmd": "one string",
            "entrypoint": ["sh", "-c"],
            "Env": None,
            "Labels": {"a": "b"},
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/data": None},
            "Unknown": {"deep": 1},
            "HostConfig": {
                "Memory": 5,
                "memoryswap": -1,
                "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
                "PortBindings": {"80/tcp": [{"HostPort": "8080"}], "81/tcp": None},
                "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
                "BlkioDeviceReadIOps": [{"Path": "/dev/sda", "Rate": 5}],
                "LogConfig": None,
                "ContainerIDFile": "/x",
                "UTSMode": "host",
            },
            "NetworkingConfig": {"EndpointsConfig": {"bridge": None, "x": {"Aliases": ["a"]}}},
        }
    )
    assert command.name == "web"
    assert command.config.cmd == ["one string"]
    assert command.config.entrypoint == ["sh", "-c"]
    assert command.config.volumes == {"/data": {}}
    host = command.host_config
    assert (host.memory, host.memory_swap, host.uts_mode) == (5, -1, "host")
    assert host.restart_policy.name == "always"
    assert host.port_bindings["80/tcp"][0].host_port == "8080"
    assert host.ulimits[0].hard == 2
    assert host.blkio_device_read_iops[0].rate == 5
    assert command.networking == {
        "bridge": EndpointSettings(),
        "x": EndpointSettings(aliases=["a"]),
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"Image": 7}, "cannot unmarshal number into Go struct field ContainerConfig.Image"),
        ({"Image": "bb", "Env": "A=1"}, "ContainerConfig.Env of type []string"),
        ({"Image": "bb", "Env": [1]}, "Env.0 of type string"),
        ({"Image": "bb", "Tty": "yes"}, "ContainerConfig.Tty of type bool"),
        ({"Image": "bb", "Labels": ["a"]}, "ContainerConfig.Labels of type map"),
        ({"HostConfig": {"Memory": "lots"}}, "field HostConfig.Memory of type int64"),
        ({"HostConfig": {"Memory": 1.5}}, "number 1.5 into Go struct field HostConfig.Memory"),
        ({"HostConfig": {"RestartPolicy": "no"}}, "HostConfig.RestartPolicy of type object"),
        ({"HostConfig": {"Ulimits": [{"Soft": "x"}]}}, "HostConfig.Ulimits.0.Soft"),
        ({"HostConfig": []}, "HostConfig of type map"),
        ({"NetworkingConfig": {"EndpointsConfig": {"a": 1}}}, "EndpointsConfig.a"),
        ({}, "config cannot be empty"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        create(body)
    assert words in caught.value.message


def test_options_of_other_platforms_are_refused_by_name() -> None:
    assert create({"Image": "bb", "HostConfig": {"CpuCount": 0, "KernelMemory": 0}})
    with pytest.raises(NotSupported, match="CpuPercent"):
        create({"Image": "bb", "HostConfig": {"CpuPercent": 5}})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "invalid JSON"),
        (b'{"a":1} x', "unexpected content after JSON"),
        (b'{"a":1}{}', "unexpected content after JSON"),
        (b"[1]", "cannot unmarshal array"),
        (b'"x"', "cannot unmarshal string"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "max depth"),
        (b"[" * 100_000, "max depth"),
        (b'{"a":NaN}', "invalid character"),
        (b'{"a":99999999999999999999}', "type int64"),
        (b'{"a":9223372036854775808}', "type int64"),
        (b'{"a":"\\ud800"}', "not valid Unicode"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        parse(body)
    assert (caught.value.status, words in caught.value.message) == (400, True)


def test_null_is_an_empty_object() -> None:
    assert parse(b"null") == {}


def test_an_exec_needs_a_command() -> None:
    with pytest.raises(InvalidParameter, match="No exec command specified"):
        exec_config({"Cmd": []})
    assert exec_config({"Cmd": ["ls"], "Tty": True, "Env": ["A=1"]}).env == ["A=1"]
