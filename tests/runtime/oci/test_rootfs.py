"""The container's root: mounts, devices, what is hidden, and images that try to get out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mooring.runtime.oci import cgroups, rootsource
from mooring.runtime.oci.container import OciError, Overlay
from mooring.runtime.oci.rootsource import mount_overlay

from .conftest import Box, default_spec

pytestmark = pytest.mark.kernel


def shell(command: str, *mounts: dict[str, Any]) -> dict[str, Any]:
    """A default configuration that runs a shell command, with further mounts."""
    spec = default_spec("sh", "-c", command)
    spec["mounts"] += mounts
    return spec


def bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", *options],
    }


def test_a_read_only_root_can_not_be_written(box: Box) -> None:
    spec = shell("touch /x; touch /dev/shm/y && echo shm")
    spec["root"]["readonly"] = True
    result = box.run(spec)
    assert "Read-only file system" in result.output
    assert result.output.endswith("shm\n")
    assert not (box.rootfs / "x").exists()


def test_masked_files_are_empty_and_masked_directories_too(box: Box) -> None:
    result = box.run(
        shell("wc -c < /proc/timer_list; ls /proc/acpi /sys/firmware; touch /sys/firmware/x")
    )
    assert result.output.splitlines()[0] == "0"
    assert "Read-only" in result.output


def test_a_masked_path_outside_of_proc_is_masked_as_well(box: Box) -> None:
    (box.rootfs / "secret").write_text("secret")
    spec = shell("cat /secret")
    spec["linux"]["maskedPaths"].append("/secret")
    assert box.run(spec).output == ""


def test_read_only_paths_can_not_be_written(box: Box) -> None:
    result = box.run(shell("echo h > /proc/sys/kernel/core_pattern; echo b > /proc/irq/x"))
    assert result.output.count("Read-only file system") == 1


def test_without_masks_proc_is_whole(box: Box) -> None:
    spec = shell("wc -c < /proc/timer_list; grep -c ' /proc/' /proc/self/mountinfo")
    spec["linux"]["maskedPaths"] = []
    spec["linux"]["readonlyPaths"] = []
    size, mounts = box.run(spec).output.split()
    assert int(size) > 0
    assert mounts == "0"


def test_the_default_devices_are_there(box: Box) -> None:
    result = box.run(
        shell(
            "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done;"
            "readlink /dev/fd; readlink /dev/ptmx; echo x > /dev/null; head -c 2 /dev/zero | wc -c"
        )
    )
    assert result.output.splitlines() == [
        "/dev/null 1:3 666",
        "/dev/zero 1:5 666",
        "/dev/full 1:7 666",
        "/dev/random 1:8 666",
        "/dev/urandom 1:9 666",
        "/dev/tty 5:0 666",
        "/proc/self/fd",
        "pts/ptmx",
        "2",
    ]


def test_further_devices_are_made(box: Box) -> None:
    spec = shell("stat -c '%t:%T %a %u:%g' /dev/below/it")
    device = {"path": "/dev/below/it", "type": "c", "major": 10, "minor": 200}
    spec["linux"]["devices"] = [{**device, "fileMode": 0o640, "uid": 3, "gid": 4}]
    assert box.run(spec).output == "a:c8 640 3:4\n"


def test_only_allowed_devices_can_be_opened(box: Box) -> None:
    spec = shell(
        "mknod /dev/kmsg c 1 11; head -c 1 /dev/kmsg; mknod /dev/z c 1 5; head -c 1 /dev/z | wc -c"
    )
    result = box.run(spec)
    assert "Operation not permitted" in result.output
    assert result.output.endswith("1\n")


def test_device_nodes_are_made_with_the_rules_of_the_engine(box: Box) -> None:
    from mooring.runtime.oci import template

    spec = shell("mknod /dev/kmsg c 1 11 && echo made; head -c 1 /dev/kmsg")
    spec["linux"]["resources"]["devices"] = template.DEVICE_RULES
    result = box.run(spec)
    assert result.output.startswith("made\n")
    assert "Operation not permitted" in result.output


def test_a_bind_mount_shows_the_source(box: Box, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("hello\n")
    (tmp_path / "single").write_text("single\n")
    spec = shell(
        "cat /mnt/deep/file /etc/single; echo new > /mnt/deep/new",
        bind(tmp_path / "data", "/mnt/deep", "rprivate"),
        bind(tmp_path / "single", "/etc/single"),
    )
    assert box.run(spec).output == "hello\nsingle\n"
    assert (tmp_path / "data/new").read_text() == "new\n"


@pytest.mark.parametrize("option", ["ro", "rro"])
def test_a_read_only_bind_mount_can_not_be_written(box: Box, tmp_path: Path, option: str) -> None:
    (tmp_path / "data").mkdir()
    spec = shell(
        "touch /data/x; grep ' /data ' /proc/self/mountinfo",
        bind(tmp_path / "data", "/data", option, "nosuid", "noexec"),
    )
    result = box.run(spec)
    assert "Read-only file system" in result.output
    assert " ro,nosuid,noexec," in result.output


def test_a_source_that_does_not_exist_is_named(box: Box) -> None:
    with pytest.raises(OciError, match="cannot bind /does/not/exist to /data"):
        box.run(shell("true", bind(Path("/does/not/exist"), "/data")))


def test_tmpfs_options_are_applied(box: Box) -> None:
    mount = {
        "destination": "/run",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["noexec", "nosuid", "size=64k", "mode=1770"],
    }
    result = box.run(
        shell(
            "stat -c %a /run; dd if=/dev/zero of=/run/x bs=1k count=100;"
            "grep ' /run ' /proc/self/mountinfo",
            mount,
        )
    )
    assert result.output.startswith("1770\n")
    assert "No space left on device" in result.output
    assert "nosuid,noexec" in result.output
    assert "size=64k" in result.output


def test_a_tmpfs_takes_what_the_image_has_there(box: Box) -> None:
    below = box.rootfs / "var/below"
    below.mkdir(parents=True)
    (box.rootfs / "var").chmod(0o751)
    (below / "file").write_text("kept\n")
    os.chown(below / "file", 5, 6)
    (below / "link").symlink_to("file")
    mount = {
        "destination": "/var",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["tmpcopyup"],
    }
    result = box.run(
        shell(
            "stat -c %a /var; cat /var/below/link; stat -c %u:%g /var/below/file; touch /var/x",
            mount,
        )
    )
    assert result.output == "751\nkept\n5:6\n"
    assert not (box.rootfs / "var/x").exists()


@pytest.mark.parametrize(("source", "destination"), [("file", "/directory"), (".", "/hosts")])
def test_a_file_is_not_mounted_on_a_directory_nor_the_reverse(
    box: Box, tmp_path: Path, source: str, destination: str
) -> None:
    (tmp_path / "file").write_text("x")
    (box.rootfs / "directory").mkdir()
    (box.rootfs / "hosts").write_text("y")
    mount = {
        "destination": destination,
        "type": "bind",
        "source": str(tmp_path / source),
        "options": ["rbind"],
    }
    words = f"on {destination}: not a directory: Are you trying to mount a directory onto a file"
    with pytest.raises(OciError, match=words):
        box.run(shell("true", mount))


def test_an_unknown_option_of_a_filesystem_is_an_error(box: Box) -> None:
    mount = {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nope=1"]}
    with pytest.raises(OciError, match="cannot mount 'tmpfs' on /run: tmpfs"):
        box.run(shell("true", mount))


def test_a_mount_of_another_size_replaces_the_usual_one(box: Box) -> None:
    spec = shell("grep ' /dev/shm ' /proc/self/mountinfo")
    spec["mounts"][-1]["options"][-1] = "size=1024k"
    lines = box.run(spec).output.splitlines()
    assert len(lines) == 1
    assert "size=1024k" in lines[0]


def test_cgroups_are_shown_read_only(box: Box) -> None:
    result = box.run(shell("cd /sys/fs/cgroup; for d in . */; do ! [ -d $d ] || mkdir $d/x; done"))
    lines = result.output.splitlines()
    assert len(lines) >= (1 if cgroups.version() == 2 else 2)
    assert all("Read-only file system" in line for line in lines)


# --- the terminal ---


def test_a_terminal_is_the_containers_own(box: Box) -> None:
    spec = shell("tty; stty size; test -c /dev/console && echo console; stat -c %u /dev/pts/0")
    spec["process"]["terminal"] = True
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    reader, writer = os.pipe()
    running = box.start(spec, stdout=writer, console_size=(33, 99))
    os.close(writer)
    os.close(reader)
    assert running.master is not None
    result = box.finish(running, running.master)
    assert result.output.split() == ["/dev/pts/0", "33", "99", "console", "1000"]


def test_a_terminal_controls_its_session(box: Box) -> None:
    spec = default_spec("cat")
    spec["process"]["terminal"] = True
    reader, writer = os.pipe()
    running = box.start(spec, stdout=writer)
    os.close(writer)
    os.close(reader)
    assert running.master is not None
    os.write(running.master, b"text\n")
    echoed = b""
    while echoed.count(b"text") < 2:
        echoed += os.read(running.master, 100)
    os.write(running.master, b"\x04")
    assert box.finish(running, running.master).code == 0


def test_without_devpts_a_terminal_is_refused(box: Box) -> None:
    spec = shell("true")
    spec["process"]["terminal"] = True
    spec["mounts"] = [m for m in spec["mounts"] if m["type"] != "devpts"]
    with pytest.raises(OciError, match="terminal"):
        box.run(spec)


# --- images that try to get out ---


def test_links_in_the_image_do_not_lead_a_mount_out(box: Box, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (box.rootfs / "up").symlink_to("../../../../../../../../.." + str(tmp_path / "victim"))
    (box.rootfs / "absolute").symlink_to(tmp_path / "victim")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("x")
    spec = shell(
        "cat /up/one/file /absolute/two/file",
        bind(tmp_path / "data", "/up/one"),
        bind(tmp_path / "data", "/absolute/two"),
    )
    assert box.run(spec).output == "xx"
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_link_to_the_root_stays_inside(box: Box) -> None:
    (box.rootfs / "etc").rmdir()
    (box.rootfs / "etc").symlink_to("/")
    hosts = Path("/etc/hosts")
    assert box.run(shell("cat /hosts", bind(hosts, "/etc/hosts"))).output == hosts.read_text()


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_proc_and_sys_are_not_mounted_behind_a_link(box: Box, name: str) -> None:
    (box.rootfs / name).rmdir()
    (box.rootfs / name).symlink_to("tmp")
    with pytest.raises(OciError, match="ordinary directory"):
        box.run(shell("true"))


def test_dev_behind_a_link_is_made_inside(box: Box) -> None:
    (box.rootfs / "dev").rmdir()
    (box.rootfs / "dev").symlink_to("/tmp/elsewhere")
    assert box.run(shell("echo x > /tmp/elsewhere/null && echo fine")).output == "fine\n"


def test_nothing_may_be_mounted_into_proc(box: Box, tmp_path: Path) -> None:
    with pytest.raises(OciError, match="procfs"):
        box.run(shell("true", bind(tmp_path, "/proc/self")))
    (box.rootfs / "way").symlink_to("/proc")
    with pytest.raises(OciError, match="procfs"):
        box.run(shell("true", bind(tmp_path, "/way/1/attr")))


def test_a_fake_of_a_harmless_file_in_proc_is_fine(box: Box, tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("1 2\n")
    spec = shell("cat /proc/uptime", bind(tmp_path / "uptime", "/proc/uptime"))
    assert box.run(spec).output == "1 2\n"


def test_a_working_directory_through_a_descriptor_is_refused(box: Box) -> None:
    spec = shell("pwd; ls")
    for number in range(3, 12):
        spec["process"]["cwd"] = f"/proc/self/fd/{number}"
        with pytest.raises(OciError, match="chdir to cwd"):
            box.run(spec)


def test_python_of_the_image_is_never_imported(box: Box) -> None:
    # The child is Python until it executes: modules of its root must not be taken for its own.
    for directory in ("usr/lib/python3.11", "usr/lib/python3/dist-packages"):
        (box.rootfs / directory).mkdir(parents=True)
        for module in ("encodings", "stat", "copy", "traceback", "linecache"):
            (box.rootfs / directory / f"{module}.py").write_text("open('/owned', 'w')")
    with pytest.raises(OciError):
        box.run(default_spec("nope"))
    assert not (box.rootfs / "owned").exists()


# --- the root filesystem's layers ---


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_an_overlay_of_many_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, one_by_one: bool
) -> None:
    """Also as kernels before 6.7 take them, with names that are too long for one option."""
    monkeypatch.setattr(rootsource, "_one_by_one", one_by_one)
    lowers = [tmp_path / f"layer:{number}-of-many" for number in range(count)]
    for number, lower in enumerate(lowers):
        lower.mkdir()
        (lower / f"file-{number}").touch()
    before = os.getcwd()
    (tmp_path / "last").mkdir()
    root = mount_overlay(Overlay([*map(str, lowers), str(tmp_path / "last")]))
    found = os.listdir(root_directory := os.open(".", os.O_RDONLY, dir_fd=root))
    for fd in (root, root_directory):
        os.close(fd)
    assert set(found) == {f"file-{number}" for number in range(count)}
    assert os.getcwd() == before
