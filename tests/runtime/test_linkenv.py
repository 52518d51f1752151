"""What a legacy link tells a container of another one."""

from __future__ import annotations

from mooring.kit.models.container import ContainerConfig
from mooring.runtime.linkenv import variables


def told(*ports: str, env: list[str] | None = None) -> dict[str, str]:
    config = ContainerConfig(exposed_ports={port: {} for port in ports}, env=env)
    return variables("web", "my-db", "10.0.0.2", config)


def test_a_link_to_a_container_without_ports_has_its_name_alone() -> None:
    assert told() == {"MY_DB_NAME": "/web/my-db"}


def test_the_first_port_is_the_links_own_and_tcp_comes_first() -> None:
    assert told("53/udp", "53/tcp", "80")["MY_DB_PORT"] == "tcp://10.0.0.2:53"
    found = told("99/udp")
    assert found == {
        "MY_DB_NAME": "/web/my-db",
        "MY_DB_PORT": "udp://10.0.0.2:99",
        "MY_DB_PORT_99_UDP": "udp://10.0.0.2:99",
        "MY_DB_PORT_99_UDP_ADDR": "10.0.0.2",
        "MY_DB_PORT_99_UDP_PORT": "99",
        "MY_DB_PORT_99_UDP_PROTO": "udp",
    }


def test_three_ports_in_a_row_are_a_range_and_two_are_not() -> None:
    found = told("7/tcp", "8/tcp", "80-82/tcp")
    assert not {key for key in found if key.startswith("MY_DB_PORT_7_TCP_") and "START" in key}
    assert found["MY_DB_PORT_80_TCP_START"] == "tcp://10.0.0.2:80"
    assert found["MY_DB_PORT_80_TCP_PORT_START"] == "80"
    assert found["MY_DB_PORT_80_TCP_END"] == "tcp://10.0.0.2:82"
    assert found["MY_DB_PORT_80_TCP_PORT_END"] == "82"
    assert found["MY_DB_PORT_81_TCP_PROTO"] == "tcp"


def test_its_variables_are_told_but_for_those_that_everybody_has() -> None:
    found = told(env=["USER=me", "EMPTY=", "PATH=/bin", "HOME=/", "GONE"])
    assert {key: value for key, value in found.items() if "_ENV_" in key} == {
        "MY_DB_ENV_USER": "me",
        "MY_DB_ENV_EMPTY": "",
    }
