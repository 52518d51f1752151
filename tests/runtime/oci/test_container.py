"""Containers as their programs see them: each test runs a real one."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from mooring.runtime.oci import mountapi
from mooring.runtime.oci.container import OciError, Overlay, prepare

from .conftest import Box, default_spec

pytestmark = pytest.mark.kernel

RT_SIGACTION = 13 if os.uname().machine == "x86_64" else 134


def test_output_and_exit_code_arrive(box: Box) -> None:
    result = box.run(default_spec("sh", "-c", "echo out; echo err >&2; exit 7"))
    assert (result.code, result.output) == (7, "out\nerr\n")


def test_a_signal_is_told_from_an_exit(box: Box) -> None:
    spec = default_spec("sh", "-c", "sh -c 'kill -9 $$'; exit $?")
    assert box.run(spec).code == 137


def test_a_program_that_is_nowhere_in_path_is_127(box: Box) -> None:
    with pytest.raises(OciError, match=r'exec: "nope": executable file not found in \$PATH') as e:
        box.run(default_spec("nope"))
    assert e.value.exit_code == 127


def test_a_path_that_does_not_exist_is_127(box: Box) -> None:
    with pytest.raises(OciError, match='exec: "/nope": stat /nope: no such file') as e:
        box.run(default_spec("/nope"))
    assert e.value.exit_code == 127


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("/etc", 'exec: "/etc": is a directory'),
        ("/plain", 'exec: "/plain": permission denied'),
        ("/text", "exec /text: exec format error"),
    ],
)
def test_what_can_not_be_executed_is_126(box: Box, program: str, reason: str) -> None:
    (box.rootfs / "plain").write_text("x")
    (box.rootfs / "text").write_text("x")
    (box.rootfs / "text").chmod(0o755)
    with pytest.raises(OciError, match=reason) as e:
        box.run(default_spec(program))
    assert e.value.exit_code == 126


def test_path_is_searched_as_the_container_has_it(box: Box) -> None:
    (box.rootfs / "opt").mkdir()
    (box.rootfs / "opt/tool").write_text("#!/bin/sh\necho found\n")
    (box.rootfs / "opt/tool").chmod(0o755)
    spec = default_spec("tool")
    spec["process"]["env"] = ["PATH=/bin:/opt"]
    assert box.run(spec).output == "found\n"


def test_a_user_who_may_not_execute_it_is_refused(box: Box) -> None:
    (box.rootfs / "secret").write_text("#!/bin/sh\n")
    (box.rootfs / "secret").chmod(0o700)
    spec = default_spec("/secret")
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    with pytest.raises(OciError, match="permission denied") as e:
        box.run(spec)
    assert e.value.exit_code == 126


def test_user_groups_umask_and_directory_are_as_configured(box: Box) -> None:
    spec = default_spec("sh", "-c", "id -u; id -g; id -G; umask; pwd")
    spec["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [8, 9], "umask": 0o27}
    spec["process"]["cwd"] = "/work/here"
    assert box.run(spec).output == "7\n8\n8 9\n0027\n/work/here\n"


def test_capabilities_are_those_of_the_configuration(box: Box) -> None:
    output = box.run(default_spec("grep", "^Cap", "/proc/self/status")).output
    sets = dict(line.split() for line in output.splitlines())
    assert sets["CapInh:"] == sets["CapAmb:"] == "0000000000000000"
    assert sets["CapPrm:"] == sets["CapEff:"] == sets["CapBnd:"] == "00000000a80425fb"


def test_another_user_has_no_capability_but_the_ambient_ones(box: Box) -> None:
    spec = default_spec("grep", "^CapEff", "/proc/self/status")
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    assert box.run(spec).output.split()[1] == "0000000000000000"
    spec["process"]["capabilities"]["inheritable"] = ["CAP_KILL"]
    spec["process"]["capabilities"]["ambient"] = ["CAP_KILL"]
    assert box.run(spec).output.split()[1] == "0000000000000020"


def test_no_new_privileges_is_set(box: Box) -> None:
    spec = default_spec("grep", "NoNewPrivs", "/proc/self/status")
    spec["process"]["noNewPrivileges"] = True
    assert box.run(spec).output.split() == ["NoNewPrivs:", "1"]


def test_no_descriptor_but_stdio_reaches_the_program(box: Box) -> None:
    spec = default_spec("sh", "-c", "echo /proc/self/fd/*")
    # The shell itself opens the directory to expand the star.
    assert box.run(spec).output.split()[:3] == [f"/proc/self/fd/{n}" for n in range(3)]
    assert len(box.run(spec).output.split()) <= 4


def test_signals_are_neither_ignored_nor_blocked(box: Box) -> None:
    # As glibc's posix_spawn leaves it in every program that it starts.
    ignored = ctypes.create_string_buffer((1).to_bytes(8, "little"), 32)
    libc = ctypes.CDLL(None)
    libc.syscall(RT_SIGACTION, 32, ignored, None, 8)
    try:
        output = box.run(default_spec("grep", "^Sig[BI]", "/proc/self/status")).output
    finally:
        libc.syscall(RT_SIGACTION, 32, ctypes.create_string_buffer(32), None, 8)
    assert {line.split()[1] for line in output.splitlines()} == {"0000000000000000"}


def test_the_container_is_alone_in_its_namespaces(box: Box) -> None:
    result = box.run(default_spec("sh", "-c", "echo $$; hostname; ls -d /proc/[0-9]* | wc -l"))
    assert result.output.splitlines()[:2] == ["1", "box"]
    assert int(result.output.splitlines()[2]) <= 3


def test_loopback_is_up_in_a_new_network_namespace(box: Box) -> None:
    output = box.run(default_spec("cat", "/sys/class/net/lo/flags")).output
    assert int(output, 16) & 1


def test_the_host_root_can_not_be_reached(box: Box) -> None:
    result = box.run(default_spec("sh", "-c", "cat /proc/self/mountinfo; ls /.. "))
    mount_points = [line.split()[4] for line in result.output.splitlines() if " - " in line]
    assert mount_points.count("/") == 1
    assert not [point for point in mount_points if str(box.bundle) in point]
    assert result.output.endswith("bin\ndev\netc\nproc\nsys\ntmp\n")


def test_nothing_of_it_is_mounted_on_the_host(box: Box) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    reader, writer = os.pipe()
    running = box.start(default_spec("sleep", "100"), stdout=writer)
    os.close(writer)
    assert Path("/proc/self/mountinfo").read_text() == before
    box.clean(running)
    os.close(reader)


def test_sysctls_of_its_namespaces_are_set(box: Box) -> None:
    spec = default_spec("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax")
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"}
    assert box.run(spec).output == "1\n4096\n"


def test_an_unknown_sysctl_is_an_error_that_names_it(box: Box) -> None:
    spec = default_spec("true")
    spec["linux"]["sysctl"] = {"net.nope": "1"}
    with pytest.raises(OciError, match=r"cannot set sysctl net\.nope to 1"):
        box.run(spec)


def test_resource_limits_are_set(box: Box) -> None:
    spec = default_spec("sh", "-c", "ulimit -n; ulimit -H -n")
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    assert box.run(spec).output == "100\n200\n"


def test_the_oom_score_is_raised(box: Box) -> None:
    spec = default_spec("cat", "/proc/self/oom_score_adj")
    spec["process"]["oomScoreAdj"] = 321
    assert box.run(spec).output == "321\n"


def test_the_caller_hears_of_it_before_anything_was_executed(box: Box) -> None:
    seen = []

    def before_exec(pid: int) -> None:
        seen.append(os.readlink(f"/proc/{pid}/exe"))

    box.run(default_spec("true"), before_exec=before_exec)
    assert os.path.basename(seen[0]).startswith("python")


def test_a_caller_that_changes_its_mind_leaves_nothing(box: Box) -> None:
    def before_exec(pid: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        box.run(default_spec("sh", "-c", "echo must not be seen"), before_exec=before_exec)


def test_timings_name_the_steps(box: Box) -> None:
    timings: list[tuple[str, float]] = []
    box.run(default_spec("true"), timings=timings)
    assert {"stub", "root", "init", "init.pivot", "execve"} <= {name for name, _ in timings}


def test_an_overlay_of_many_layers_shows_all_of_them(box: Box, tmp_path: Path) -> None:
    layers = []
    for number in range(120):
        layer = tmp_path / ("a layer whose name is long " * 3) / f"layer:{number}"
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text(str(number))
        layers.append(str(layer))
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    overlay = Overlay([*layers, str(box.rootfs)], str(tmp_path / "upper"), str(tmp_path / "work"))
    spec = default_spec("sh", "-c", "ls / | grep -c file; cat /file0 /file119; touch /new")
    assert box.run(spec, rootfs=overlay).output == "120\n0119"
    assert (tmp_path / "upper/new").exists()


def test_a_stub_that_is_not_needed_goes_without_a_trace(box: Box) -> None:
    stub = prepare(f"{box.parent}/unused")
    stub.abandon()
    with pytest.raises(ChildProcessError):
        os.waitpid(stub.pid, 0)


def test_what_was_mounted_after_the_stub_was_forked_is_seen(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "late"
    source.mkdir()
    stub = prepare(f"{box.parent}/early")
    mountapi.mount("tmpfs", str(source), "tmpfs", 0)
    try:
        (source / "file").write_text("late\n")
        box.warm = False
        spec = default_spec("cat", "/data/file")
        options = ["rbind", "rprivate"]
        spec["mounts"].append(
            {"destination": "/data", "type": "bind", "source": str(source), "options": options}
        )
        assert box.run(spec, stub=stub).output == "late\n"
    finally:
        mountapi.unmount(str(source))


def test_a_namespace_of_the_host_is_shared(box: Box) -> None:
    spec = default_spec("sh", "-c", "readlink /proc/self/ns/uts; readlink /proc/self/ns/ipc")
    del spec["hostname"]
    spec["linux"]["namespaces"] = [{"type": "mount"}, {"type": "ipc"}, {"type": "network"}]
    output = box.run(spec).output.split()
    assert output[0] == os.readlink("/proc/self/ns/uts")
    assert output[1] != os.readlink("/proc/self/ns/ipc")


def test_namespaces_of_another_container_are_joined_by_path(box: Box) -> None:
    reader, writer = os.pipe()
    first = box.start(default_spec("sleep", "100"), stdout=writer)
    os.close(writer)
    spec = default_spec("sh", "-c", "readlink /proc/self/ns/net; ps | grep -c sleep; hostname")
    kinds = {"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts"}
    spec["linux"]["namespaces"] = [{"type": "mount"}] + [
        {"type": kind, "path": f"/proc/{first.pid}/ns/{file}"} for kind, file in kinds.items()
    ]
    del spec["hostname"]
    network = os.readlink(f"/proc/{first.pid}/ns/net")
    lines = box.run(spec).output.splitlines()
    assert lines[0] == network
    assert int(lines[1]) >= 1
    assert lines[2] == "box"
    box.clean(first)
    os.close(reader)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}, "uidMappings"),
        ({"timeOffsets": {"boottime": {"secs": 1}}}, "timeOffsets"),
        ({"namespaces": [{"type": "mount"}, {"type": "time"}]}, "'time'"),
        ({"namespaces": [{"type": "mount"}, {"type": "user"}]}, "user namespaces"),
    ],
)
def test_what_is_not_supported_is_named(box: Box, change: dict[str, object], words: str) -> None:
    spec = default_spec("true")
    spec["linux"].update(change)
    with pytest.raises(OciError, match=words):
        box.run(spec)
