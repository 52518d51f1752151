"""One engine for the tests of networks, and what they look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.harness import Engine, engine


@pytest.fixture(scope="package")
def networked() -> Iterator[Engine]:
    with engine("--set", "address_pools=10.232.0.0/21:24") as made:
        yield made


@pytest.fixture
def docker(networked: Engine) -> Iterator[Engine]:
    yield networked
    networked.remove_all()
    networked.docker("network", "prune", "-f")


def links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def sleeper(docker: Engine, name: str, *options: str) -> str:
    return docker.out("run", "-d", "--name", name, *options, "bb", "sleep", "1000")


def endpoints(docker: Engine, name: str) -> Any:
    return docker.inspect(name)["NetworkSettings"]["Networks"]


def reaches(docker: Engine, name: str, address: str) -> bool:
    ping = ("exec", name, "ping", "-c1", "-W1", address)
    return docker.docker(*ping, check=False).returncode == 0


def shown(docker: Engine, name: str) -> Any:
    return json.loads(docker.out("network", "inspect", name))[0]
