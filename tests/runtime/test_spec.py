"""OCI configurations as values: what each option of a container changes in them."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.kit import capabilities, procpaths
from mooring.kit.models.container import ContainerRecord, HostConfig, MountPoint
from mooring.kit.mountspecs import Bind, Tmpfs, all_mounts, point
from mooring.runtime import defaults, spec
from mooring.runtime.limits import HostFacts
from mooring.runtime.mounts import Files
from mooring.runtime.oci import template
from mooring.runtime.spec import Surroundings, User

FACTS = HostFacts(cgroup_version=1, capabilities=capabilities.NAMES, cpus=2)
FILES = Files("/c/hosts", "/c/hostname", "/c/resolv.conf")


def record(host: dict[str, Any] | None = None, **config: Any) -> ContainerRecord:
    return ContainerRecord.model_validate(
        {
            "id": "c" * 64,
            "name": "web",
            "node": "n",
            "created_ns": 1,
            "image": "bb",
            "path": "sh",
            "args": ["-c", "true"],
            "config": config,
            "host_config": host or {},
        }
    )


def around(**fields: Any) -> Surroundings:
    return Surroundings(
        **{
            "facts": FACTS,
            "rootfs": "/c/rootfs",
            "cgroup": "/mooring/c",
            "hostname": "web",
            "files": FILES,
            **fields,
        }
    )


def build(host: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    given = record(host, **config)
    return spec.build(given, around(mounts=points(given.host_config)))


def points(host: HostConfig) -> list[MountPoint]:
    return [point(item) for item in all_mounts(host) if isinstance(item, Bind | Tmpfs)]


def mounts_at(built: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in built["mounts"]}


def test_the_defaults_are_those_that_the_runtime_makes_ahead() -> None:
    """A container without options gets every part that a warm shim has prepared."""
    built = build()
    found = mounts_at(built)
    for part in (
        template.PROC,
        template.DEV,
        template.DEVPTS,
        template.MQUEUE,
        template.SHM,
        template.CGROUP,
    ):
        assert template.same(found[str(part["destination"])], part)
    in_proc = {path for path in built["linux"]["maskedPaths"] if path.startswith("/proc")}
    assert in_proc == template.MASKED_IN_PROC
    assert set(built["linux"]["readonlyPaths"]) == template.READONLY_IN_PROC


def test_a_container_has_namespaces_of_its_own() -> None:
    kinds = [entry["type"] for entry in build()["linux"]["namespaces"]]
    assert kinds == ["mount", "network", "uts", "pid", "ipc"]


def test_namespaces_are_joined_or_left_out() -> None:
    built = spec.build(record(), around(network="/net", pid=None, ipc="/ipc", uts=None))
    assert built["linux"]["namespaces"] == [
        {"type": "mount"},
        {"type": "network", "path": "/net"},
        {"type": "ipc", "path": "/ipc"},
    ]
    assert "hostname" not in built


@pytest.mark.parametrize(
    ("mode", "privileged", "version", "expected"),
    [
        ("", False, 1, False),
        ("", False, 2, True),
        ("", True, 2, False),
        ("private", False, 1, True),
        ("host", False, 2, False),
    ],
)
def test_the_cgroup_namespace(mode: str, privileged: bool, version: int, expected: bool) -> None:
    host = record({"cgroupns_mode": mode, "privileged": privileged}).host_config
    assert spec.cgroup_namespace(host, version) is expected


@pytest.mark.parametrize(
    ("env", "tty", "expected"),
    [
        ([], False, [f"PATH={defaults.PATH}", "HOSTNAME=web", "HOME=/root"]),
        ([], True, [f"PATH={defaults.PATH}", "HOSTNAME=web", "TERM=xterm", "HOME=/root"]),
        (
            ["A=1", "PATH=/bin", "A=2", "B="],
            False,
            ["PATH=/bin", "HOSTNAME=web", "A=2", "B=", "HOME=/root"],
        ),
        (["HOME=/x"], False, [f"PATH={defaults.PATH}", "HOSTNAME=web", "HOME=/x"]),
        (["HOSTNAME", "C"], False, [f"PATH={defaults.PATH}", "HOME=/root"]),
    ],
)
def test_the_environment_has_dockers_order(env: list[str], tty: bool, expected: list[str]) -> None:
    assert spec.environment(record(env=env, tty=tty), around()) == expected


def test_variables_of_links_come_before_those_of_the_user() -> None:
    told = {"DB_NAME": "/web/db", "DB_PORT": "tcp://10.0.0.2:1"}
    made = spec.environment(record(env=["DB_PORT=mine"]), around(links=[told]))
    assert made[2:4] == ["DB_NAME=/web/db", "DB_PORT=mine"]


def test_root_has_its_capabilities_and_a_user_only_their_bound() -> None:
    as_root = spec.process(record(), around())["capabilities"]
    assert as_root["effective"] == as_root["bounding"] == as_root["permitted"]
    assert set(as_root["bounding"]) == set(capabilities.DEFAULT)
    as_user = spec.process(record(), around(user=User(1000, 1000, (1000, 10), "/home")))
    assert list(as_user["capabilities"]) == ["bounding"]
    assert as_user["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [1000, 10]}


def test_privileged_masks_nothing_and_may_write_everywhere() -> None:
    built = build({"privileged": True})
    assert built["linux"]["maskedPaths"] == built["linux"]["readonlyPaths"] == []
    assert "rw" in mounts_at(built)["/sys"]["options"]
    assert "rw" in mounts_at(built)["/sys/fs/cgroup"]["options"]
    assert built["process"]["capabilities"]["bounding"] == list(capabilities.NAMES)
    assert spec.seccomp_profile(record({"privileged": True}).host_config) == "unconfined"


def test_an_empty_list_of_masked_paths_is_a_wish_and_none_is_not() -> None:
    assert build({"masked_paths": []})["linux"]["maskedPaths"] == []
    assert build({"masked_paths": None})["linux"]["maskedPaths"] == procpaths.MASKED_PATHS


@pytest.mark.parametrize(
    ("options", "no_new_privileges", "profile"),
    [
        ([], False, None),
        (["no-new-privileges"], True, None),
        (["no-new-privileges:false"], False, None),
        (["seccomp=unconfined"], False, "unconfined"),
        (["seccomp=builtin"], False, None),
        (['seccomp={"x":1}', "no-new-privileges=true"], True, '{"x":1}'),
    ],
)
def test_security_options(options: list[str], no_new_privileges: bool, profile: str | None) -> None:
    host = record({"security_opt": options}).host_config
    assert spec.no_new_privileges(host) is no_new_privileges
    assert spec.seccomp_profile(host) == profile


def test_init_is_bound_into_the_container_and_runs_the_program() -> None:
    built = spec.build(record(), around(init="/usr/bin/tini-static"))
    assert built["process"]["args"] == ["/sbin/docker-init", "--", "sh", "-c", "true"]
    assert mounts_at(built)["/sbin/docker-init"]["source"] == "/usr/bin/tini-static"


def test_a_mount_of_the_users_takes_the_place_of_a_default_one() -> None:
    built = build({"tmpfs": {"/dev/shm": "size=1m"}, "binds": ["/h:/etc/hosts:ro"]})
    shm = [mount for mount in built["mounts"] if mount["destination"] == "/dev/shm"]
    assert [mount["options"] for mount in shm] == [["noexec", "nosuid", "nodev", "size=1m"]]
    hosts = [mount for mount in built["mounts"] if mount["destination"] == "/etc/hosts"]
    assert [mount["source"] for mount in hosts] == ["/h"]


def test_a_read_only_root_has_read_only_files_of_the_engine() -> None:
    built = build({"readonly_rootfs": True})
    assert built["root"]["readonly"] is True
    assert "ro" in mounts_at(built)["/etc/resolv.conf"]["options"]


@pytest.mark.parametrize(
    ("mode", "shm", "source"), [("none", "", None), ("", "", "shm"), ("shareable", "/s", "/s")]
)
def test_shared_memory(mode: str, shm: str, source: str | None) -> None:
    built = spec.build(record({"ipc_mode": mode}), around(shm=shm))
    mount = mounts_at(built).get("/dev/shm")
    assert (mount and mount["source"]) == source


def test_binds_say_how_they_propagate_and_what_is_read_only() -> None:
    built = build({"binds": ["/a:/b", "/c:/d:ro,rslave", "/e:/f:shared"]})
    found = mounts_at(built)
    assert found["/b"]["options"] == ["rbind", "rprivate"]
    assert found["/d"]["options"] == ["rbind", "rslave", "rro"]
    assert built["linux"]["rootfsPropagation"] == "shared"
    assert "rootfsPropagation" not in build({"binds": ["/a:/b"]})["linux"]


def test_inspect_shows_binds_and_the_tmpfs_of_mounts() -> None:
    host = record(
        {
            "binds": ["/a:/b:ro"],
            "tmpfs": {"/t": ""},
            "mounts": [{"type": "tmpfs", "target": "/u"}],
        }
    ).host_config
    shown = [item for item in points(host) if not item.hidden]
    assert [(item.type, item.destination, item.rw) for item in shown] == [
        ("bind", "/b", False),
        ("tmpfs", "/u", True),
    ]


def test_the_domain_name_is_a_sysctl_of_its_own_uts_namespace() -> None:
    assert build(domainname="test")["linux"]["sysctl"] == {"kernel.domainname": "test"}
    built = spec.build(record(domainname="test"), around(uts=None))
    assert "sysctl" not in built["linux"]
