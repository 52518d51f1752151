"""Networks on a link of the host: macvlan, VLANs, ipvlan."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.engine.harness import Engine

from .conftest import endpoints, links, reaches, sleeper

pytestmark = pytest.mark.kernel


def test_macvlan_gives_a_container_a_place_on_the_parents_wire(docker: Engine) -> None:
    parent = f"mt{os.getpid()}a"
    peer = f"mt{os.getpid()}b"
    subprocess.run(["ip", "link", "add", parent, "type", "veth", "peer", peer], check=True)
    try:
        subprocess.run(["ip", "link", "set", peer, "up"], check=True)
        docker.docker("network", "create", "-d", "macvlan", "-o", f"parent={parent}",
                      "--subnet", "10.236.0.0/24", "wire")  # fmt: skip
        sleeper(docker, "one", "--network", "wire")
        sleeper(docker, "two", "--network", "wire")
        assert reaches(docker, "one", endpoints(docker, "two")["wire"]["IPAddress"])
        assert "macvlan" not in docker.out("exec", "one", "ls", "/sys/class/net")
        docker.remove_all()
        docker.docker("network", "rm", "wire")
        assert parent in links()
    finally:
        subprocess.run(["ip", "link", "del", parent], check=True)


def test_a_vlan_of_a_parent_works_or_says_that_the_kernel_lacks_it(docker: Engine) -> None:
    parent = f"mv{os.getpid()}a"
    subprocess.run(["ip", "link", "add", parent, "type", "veth", "peer", f"{parent}b"], check=True)
    create = ("network", "create", "-d", "macvlan", "-o", f"parent={parent}.7", "--subnet",
              "10.237.1.0/24", "wire")  # fmt: skip
    try:
        done = docker.docker(*create, check=False)
        if done.returncode:
            assert "the kernel of this host has no VLAN (8021q)" in done.stderr
            assert docker.api("GET", "/networks/wire").status == 404
        else:
            docker.docker("run", "--rm", "--network", "wire", "bb", "true")
            docker.docker("network", "rm", "wire")
        assert f"{parent}.7" not in links()
    finally:
        subprocess.run(["ip", "link", "del", parent], check=True)


def test_ipvlan_works_or_says_that_the_kernel_lacks_it(docker: Engine) -> None:
    docker.docker("network", "create", "-d", "ipvlan", "-o", "parent=lo", "--subnet",
                  "10.237.0.0/24", "wire", check=False)  # fmt: skip
    done = docker.docker("run", "--rm", "--network", "wire", "bb", "true", check=False)
    if done.returncode:
        assert re.search(r"the kernel of this host has no ipvlan|cannot connect", done.stderr)
