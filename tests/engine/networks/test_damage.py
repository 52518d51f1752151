"""What somebody deleted of the kernel's is made again by the next start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.engine.harness import Engine

from .conftest import endpoints, reaches, shown, sleeper

pytestmark = pytest.mark.kernel


def test_a_deleted_bridge_is_made_again_by_the_next_start(docker: Engine) -> None:
    network = docker.out("network", "create", "mine")
    sleeper(docker, "old", "--network", "mine")
    bridge = f"br-{network[:12]}"
    subprocess.run(["ip", "link", "del", bridge], check=True)
    sleeper(docker, "new", "--network", "mine")
    assert reaches(docker, "new", endpoints(docker, "old")["mine"]["IPAddress"])
    assert f"the bridge {bridge} of network mine was gone" in docker.logs()


def test_the_default_bridge_is_made_again_as_well(docker: Engine) -> None:
    sleeper(docker, "old")
    name = shown(docker, "bridge")["Options"]["com.docker.network.bridge.name"]
    subprocess.run(["ip", "link", "del", name], check=True)
    sleeper(docker, "new")
    assert reaches(docker, "new", endpoints(docker, "old")["bridge"]["IPAddress"])
    assert f"the bridge {name} was gone" in docker.logs()


@pytest.mark.parametrize("damage", ["delete table", "flush table", "flush set"])
def test_a_damaged_table_is_made_again_by_the_next_start(docker: Engine, damage: str) -> None:
    network = docker.out("network", "create", "mine")
    sleeper(docker, "old", "--network", "mine")
    table = ["inet", docker.instance]
    what = [*table, "bridges"] if damage == "flush set" else table
    subprocess.run(["nft", *damage.split(), *what], check=True)
    sleeper(docker, "new")
    listed = subprocess.run(["nft", "list", "table", *table], capture_output=True, text=True)
    assert listed.stdout.count(f"br-{network[:12]}") >= 3
    assert "masquerade" in listed.stdout
    assert not reaches(docker, "new", endpoints(docker, "old")["mine"]["IPAddress"])
    assert f"the nftables table {docker.instance} was changed by somebody" in docker.logs()


def test_a_prepared_sandbox_whose_link_was_deleted_is_not_used(docker: Engine) -> None:
    docker.docker("network", "create", "mine")
    docker.docker("run", "--rm", "--network", "mine", "bb", "true")
    busy = {path.name for path in Path("/sys/class/net").glob("mrv*") if not _master(path)}
    for name in busy:
        subprocess.run(["ip", "link", "del", name], capture_output=True)
    sleeper(docker, "web", "--network", "mine")
    assert reaches(docker, "web", endpoints(docker, "web")["mine"]["Gateway"])


def _master(path: Path) -> bool:
    return (path / "master").exists()
