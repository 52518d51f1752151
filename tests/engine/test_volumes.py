"""Volumes and mounts in all forms, through the docker CLI."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.runtime.volumes.mounted import is_mounted

from .harness import Engine, engine, until

pytestmark = pytest.mark.kernel

VOLUMES = "bv"
"""An image that declares volumes, one of them where it has files."""


@pytest.fixture(scope="module")
def made() -> Iterator[Engine]:
    with engine("--set", "faults=true") as found:
        found.load(VOLUMES, {"Volumes": {"/home": {}, "/fresh": {}}})
        yield found


@pytest.fixture
def docker(made: Engine) -> Iterator[Engine]:
    yield made
    made.remove_all()
    made.docker("volume", "prune", "-f")
    for name in made.out("volume", "ls", "-q").split():
        made.docker("volume", "rm", name)


def data(docker: Engine, volume: str) -> Path:
    return Path(docker.out("volume", "inspect", "-f", "{{.Mountpoint}}", volume))


def refused(docker: Engine, *args: str) -> str:
    done = docker.docker(*args, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_a_volume_is_created_once_listed_and_removed(docker: Engine) -> None:
    docker.docker("volume", "create", "--label", "a=b", "one")
    docker.docker("volume", "create", "one")
    docker.docker("volume", "create", "two")
    assert docker.out("volume", "ls", "-q", "--filter", "label=a=b") == "one"
    assert docker.out("volume", "ls", "-q", "--filter", "name=w").split() == ["two"]
    assert data(docker, "one").is_dir()
    found = docker.api("GET", "/volumes/one").json
    assert (found["Labels"], found["Scope"], found["Driver"]) == ({"a": "b"}, "local", "local")
    docker.docker("volume", "rm", "one", "two")
    assert not docker.out("volume", "ls", "-q")
    assert "get one: no such volume" in refused(docker, "volume", "rm", "one")
    docker.docker("volume", "rm", "-f", "one")
    happened = [e["Action"] for e in docker.events(type="volume") if e["Actor"]["ID"] == "one"]
    assert happened == ["create", "destroy"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["create", "a/b"], "includes invalid characters for a local volume name"),
        (["create", "a"], "volume name is too short"),
        (["create", "-d", "foo", "xx"], 'error looking up volume plugin foo: plugin "foo" not'),
        (["create", "-o", "foo=bar", "xx"], 'invalid option: "foo"'),
        (["create", "-o", "type=tmpfs", "xx"], 'missing required option: "device"'),
    ],
)
def test_a_volume_that_cannot_be(docker: Engine, args: list[str], words: str) -> None:
    assert words in refused(docker, "volume", *args)
    assert not docker.out("volume", "ls", "-q")


def test_a_volume_outlives_its_containers_and_is_in_use_meanwhile(docker: Engine) -> None:
    docker.docker("run", "--rm", "-v", "keep:/d", "bb", "sh", "-c", "echo kept > /d/f")
    assert docker.out("run", "--name", "con", "-v", "keep:/d:ro", "bb", "cat", "/d/f") == "kept"
    id_ = docker.inspect("con")["Id"]
    words = f"remove keep: volume is in use - [{id_}]"
    assert words in refused(docker, "volume", "rm", "keep")
    assert docker.out("volume", "ls", "-q", "--filter", "dangling=true") == ""
    docker.docker("rm", "con")
    assert docker.out("volume", "ls", "-q", "--filter", "dangling=true") == "keep"
    docker.docker("volume", "rm", "keep")
    assert not (docker.state / "volumes" / "keep").exists()


def test_anonymous_volumes_go_with_their_container_if_asked(docker: Engine) -> None:
    docker.docker("run", "--rm", VOLUMES, "true")
    until("they are gone", lambda: not docker.out("volume", "ls", "-q"))
    docker.docker("create", "--name", "con", "-v", "/anon", "-v", "named:/n", VOLUMES, "true")
    assert len(docker.out("volume", "ls", "-q").split()) == 4
    docker.docker("rm", "-v", "con")
    until("named is left", lambda: docker.out("volume", "ls", "-q") == "named")
    docker.docker("create", "--name", "con", VOLUMES, "true")
    docker.docker("rm", "con")
    assert len(docker.out("volume", "ls", "-q").split()) == 3
    docker.docker("volume", "prune", "-f")
    assert docker.out("volume", "ls", "-q") == "named"
    docker.docker("volume", "prune", "-f", "-a")
    assert docker.out("volume", "ls", "-q") == ""


def test_an_empty_volume_begins_with_what_the_image_has(docker: Engine) -> None:
    docker.docker("create", "--name", "con", "-v", "etc:/etc", "bb")
    assert (data(docker, "etc") / "passwd").read_text().startswith("root:x:0:0")
    docker.docker("create", "-v", "none:/etc:nocopy", "bb")
    assert not list(data(docker, "none").iterdir())
    (data(docker, "none") / "mine").touch()
    docker.docker("create", "-v", "none:/etc", "bb")
    assert [path.name for path in data(docker, "none").iterdir()] == ["mine"]
    docker.docker("create", "-v", "tmp:/tmp", "bb")
    assert data(docker, "tmp").stat().st_mode & 0o7777 == 0o1777


def test_inspect_shows_all_mounts(docker: Engine, tmp_path: Path) -> None:
    docker.docker("create", "--name", "con", "-v", "named:/data", "-v", f"{tmp_path}:/p:ro",
                  "--mount", "type=tmpfs,dst=/tt", "--tmpfs", "/hidden",
                  "--mount", "type=volume,src=ro,dst=/ro,readonly", VOLUMES)  # fmt: skip
    found = {mount["Destination"]: mount for mount in docker.inspect("con")["Mounts"]}
    source = str(docker.state / "volumes/named/_data")
    assert found.pop("/data") == {
        "Type": "volume", "Name": "named", "Source": source, "Destination": "/data",
        "Driver": "local", "Mode": "z", "RW": True, "Propagation": "",
    }  # fmt: skip
    assert found.pop("/p") == {
        "Type": "bind", "Source": str(tmp_path), "Destination": "/p", "Mode": "ro", "RW": False,
        "Propagation": "rprivate",
    }  # fmt: skip
    assert found.pop("/ro")["RW"] is False
    assert found.pop("/tt")["Type"] == "tmpfs"
    assert {(m["Type"], m["Mode"]) for m in found.values()} == {("volume", "")}
    assert set(found) == {"/home", "/fresh"}


def test_volumes_from_another_container(docker: Engine) -> None:
    docker.docker("create", "--name", "first", "-v", "/a", "-v", "data:/b", "bb")
    docker.docker("run", "--name", "second", "--volumes-from", "first", "bb",
                  "sh", "-c", "echo x > /a/f; echo y > /b/f")  # fmt: skip
    script = "cat /a/f /b/f; touch /a/g || echo refused"
    out = docker.out(
        "run", "--rm", "--volumes-from", "second:ro", "bb", "sh", "-c", f"{script} 2>&1"
    )
    assert out.split("\n")[:2] == ["x", "y"] and out.endswith("refused")
    body = {"Image": "bb", "HostConfig": {"VolumesFrom": ["nope"]}}
    answer = docker.api("POST", "/containers/create", body)
    assert (answer.status, answer.message) == (400, "No such container: nope")
    assert "invalid mode: zzz" in refused(docker, "create", "--volumes-from", "first:zzz", "bb")


def test_options_are_mounted_for_the_first_and_unmounted_after_the_last(
    docker: Engine, tmp_path: Path
) -> None:
    docker.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs",
                  "-o", "o=size=1m,mode=700", "mem")  # fmt: skip
    for name in ("one", "two"):
        docker.docker("run", "-d", "--name", name, "-v", "mem:/m", "bb", "sleep", "1000")
    docker.docker("exec", "one", "touch", "/m/f")
    assert docker.out("exec", "two", "ls", "/m") == "f"
    assert is_mounted(str(data(docker, "mem")))
    docker.docker("rm", "-f", "one")
    assert docker.out("exec", "two", "ls", "/m") == "f"
    docker.docker("rm", "-f", "two")
    until("it is unmounted", lambda: not is_mounted(str(data(docker, "mem"))))
    (tmp_path / "file").write_text("there")
    docker.docker("volume", "create", "-o", "type=none", "-o", f"device={tmp_path}",
                  "-o", "o=bind,ro", "there")  # fmt: skip
    script = "cat /t/file; touch /t/x || echo refused"
    out = docker.out("run", "--rm", "-v", "there:/t", "bb", "sh", "-c", f"{script} 2>/dev/null")
    assert out == "thererefused"
    docker.docker(
        "volume", "create", "-o", "type=none", "-o", "device=/nowhere", "-o", "o=bind", "no"
    )
    words = "failed to mount local volume: mount /nowhere:"
    assert words in refused(docker, "run", "--rm", "-v", "no:/t", "bb", "true")


def test_a_part_of_a_volume(docker: Engine) -> None:
    docker.docker("run", "--rm", "-v", "data:/d", "bb", "sh", "-c",
                  "cd /d; mkdir -p a/b; echo in > a/b/f; ln -s /etc out; ln -s a/b in")  # fmt: skip
    mount = "type=volume,src=data,dst=/t,volume-subpath="
    assert docker.out("run", "--rm", "--mount", f"{mount}a/b", "bb", "cat", "/t/f") == "in"
    assert docker.out("run", "--rm", "--mount", f"{mount}in", "bb", "cat", "/t/f") == "in"
    for path in ("out", "nope"):
        refused(docker, "run", "--rm", "--mount", f"{mount}{path}", "bb", "true")


def test_an_image_as_a_mount(docker: Engine) -> None:
    mounts: list[dict[str, object]] = [{"Type": "image", "Source": "bb", "Target": "/i"}]
    mounts.append({**mounts[0], "Target": "/e", "ImageOptions": {"Subpath": "etc"}})
    body = {
        "Image": "bb",
        "Cmd": ["sh", "-c", "ls /i/bin/sh; head -1 /e/passwd; touch /i/x || echo refused"],
        "HostConfig": {"Mounts": mounts},
    }
    id_ = docker.api("POST", "/containers/create", body).json["Id"]
    out = docker.docker("start", "-a", id_)
    assert out.stdout.splitlines() == ["/i/bin/sh", "root:x:0:0:root:/root:/bin/sh", "refused"]


def test_binds(docker: Engine, tmp_path: Path) -> None:
    missing = tmp_path / "made" / "by -v"
    docker.docker("run", "--rm", "-v", f"{missing}:/x", "bb", "touch", "/x/f")
    assert (missing / "f").exists()
    words = 'invalid mount config for type "bind": bind source path does not exist: /nonex'
    assert words in refused(docker, "create", "--mount", "type=bind,src=/nonex,dst=/x", "bb")
    both = ("-v", f"{tmp_path}:/x", "-v", "data:/x/")
    assert "Duplicate mount point: /x" in refused(docker, "create", *both, "bb")
    assert "/etc/passwd" in refused(docker, "create", "-v", "/etc/passwd", "bb")


def test_a_bind_that_is_read_only_all_the_way_down(docker: Engine, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "below"], check=True)
    try:
        script = "touch /x/below/f 2>/dev/null && echo written || echo refused"
        for option, expected in (
            ("readonly", "refused"),
            ("readonly,bind-recursive=writable", "written"),
            ("bind-recursive=disabled", "written"),
        ):
            mount = f"type=bind,src={tmp_path},dst=/x,{option}"
            assert docker.out("run", "--rm", "--mount", mount, "bb", "sh", "-c", script) == expected
        assert sorted(path.name for path in (tmp_path / "below").iterdir()) == ["f"]
    finally:
        subprocess.run(["umount", tmp_path / "below"], check=True)


def test_a_mount_behind_a_link_of_the_image_stays_inside(docker: Engine, tmp_path: Path) -> None:
    script = "rm -r /tmp; ln -s /../../..//var /tmp"
    docker.docker("run", "--name", "con", "bb", "sh", "-c", script)
    docker.docker("commit", "con", "linked")
    (tmp_path / "f").write_text("x")
    out = docker.out("run", "--rm", "-v", f"{tmp_path}:/tmp/in", "linked", "ls", "/var/in")
    assert out == "f"
    assert not Path("/var/in").exists()
    docker.remove_all()
    docker.docker("rmi", "linked")


def test_mounts_of_volumes_are_events(docker: Engine) -> None:
    docker.docker("run", "--name", "con", "-v", "data:/d:ro", "bb", "true")
    id_ = docker.inspect("con")["Id"]
    until("it died", lambda: "die" in docker.actions("con"))
    found = [
        e for e in docker.events(type="volume") if e["Actor"]["Attributes"].get("container") == id_
    ]
    assert [event["Action"] for event in found] == ["mount", "unmount"]
    assert found[0]["Actor"] == {
        "ID": "data",
        "Attributes": {
            "container": id_, "destination": "/d", "driver": "local", "propagation": "",
            "read/write": "false",
        },
    }  # fmt: skip


def test_a_volume_deleted_behind_our_back_is_said(docker: Engine) -> None:
    docker.docker("create", "--name", "con", "-v", "gone:/d", "bb", "true")
    directory = data(docker, "gone")
    directory.rmdir()
    assert f"error while mounting volume '{directory}'" in refused(docker, "start", "con")
    docker.docker("rm", "con")
    docker.docker("volume", "rm", "gone")


@pytest.mark.parametrize(
    "point", ["runtime.volume.copied", "runtime.volume.filled", "runtime.volume.moving"]
)
def test_a_volume_is_never_left_half_filled(docker: Engine, point: str) -> None:
    docker.arm(point)
    refused(docker, "create", "-v", "data:/etc", "bb")
    docker.docker("create", "--name", "con", "-v", "data:/etc", "bb")
    names = sorted(path.name for path in data(docker, "data").iterdir())
    assert (
        names == sorted(docker.out("run", "--rm", "bb", "ls", "/etc").split())[: len(names)]
        or names
    )
    assert {"passwd", "group"} <= set(names)
    assert os.listdir(docker.state / "volumes/data") == ["_data"]


def test_a_volume_with_no_room_for_the_images_files_stays_empty(docker: Engine) -> None:
    docker.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=64k",
                  "small")  # fmt: skip
    words = "failed to populate volume: no space left on device"
    assert words in refused(docker, "create", "--name", "con", "-v", "small:/bin", "bb")
    assert docker.api("GET", "/containers/con/json").status == 404
    listed = docker.out("run", "--rm", "-v", "small:/d", "bb", "ls", "-A", "/d")
    assert listed == ""
    docker.docker("run", "--rm", "-v", "small:/fresh", "bb", "sh", "-c", "echo room > /fresh/f")


def test_the_sizes_of_pruned_volumes_are_added_up(docker: Engine) -> None:
    docker.docker("run", "--rm", "-v", "data:/d", "bb", "sh", "-c", "head -c 5000 /dev/zero > /d/f")
    answer = docker.api(
        "POST", f"/volumes/prune?filters={json.dumps({'all': ['1']}).replace(' ', '')}"
    )
    assert answer.json == {"VolumesDeleted": ["data"], "SpaceReclaimed": 5000}


@pytest.mark.fault
@pytest.mark.parametrize(
    "point",
    ["lifecycle.volume.recorded", "lifecycle.volume.made", "runtime.volume.prepared"],
)
def test_a_kill_while_a_volume_is_created(docker: Engine, point: str) -> None:
    docker.arm(point)
    docker.docker("volume", "create", "--label", "a=b", "one", check=False)
    assert docker.fired(point)
    until("it is whole", lambda: docker.out("volume", "ls", "-q") == "one")
    assert data(docker, "one").is_dir()
    created = [e for e in docker.events(type="volume") if e["Action"] == "create"]
    times = {event["timeNano"] for event in created if event["Actor"]["ID"] == "one"}
    docker.docker("volume", "rm", "one")
    assert times


@pytest.mark.fault
@pytest.mark.parametrize(
    "point",
    ["lifecycle.volume.claimed", "lifecycle.volume.unmade", "runtime.volume.removed"],
)
def test_a_kill_while_a_volume_is_removed(docker: Engine, point: str) -> None:
    docker.docker("volume", "create", "one")
    docker.arm(point)
    docker.docker("volume", "rm", "one", check=False)
    assert docker.fired(point)
    until("it is gone", lambda: not (docker.state / "volumes" / "one").exists())
    again = ("volume", "create", "one")
    until("there can be another", lambda: not docker.docker(*again, check=False).returncode)
    assert data(docker, "one").is_dir()


@pytest.mark.fault
@pytest.mark.parametrize("point", ["lifecycle.volume.prepared", "lifecycle.create.recorded"])
def test_a_kill_while_a_container_is_created_with_volumes(docker: Engine, point: str) -> None:
    docker.arm(point)
    docker.docker("create", "--name", "con", "-v", "named:/n", VOLUMES, "true")
    assert docker.fired(point)
    until("its volumes are there", lambda: len(docker.out("volume", "ls", "-q").split()) == 3)
    docker.docker("rm", "-v", "con")
    until("named is left", lambda: docker.out("volume", "ls", "-q") == "named")


@pytest.mark.fault
def test_what_options_mount_outlives_a_kill_of_the_worker(docker: Engine) -> None:
    docker.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mem")
    docker.docker("run", "-d", "--name", "con", "-v", "mem:/m", "bb", "sleep", "1000")
    docker.docker("exec", "con", "touch", "/m/f")
    docker.back("runtime", docker.kill("runtime"))
    assert docker.out("run", "--rm", "-v", "mem:/m", "bb", "ls", "/m") == "f"
    docker.docker("rm", "-f", "con")
    until("it is unmounted", lambda: not is_mounted(str(data(docker, "mem"))))
