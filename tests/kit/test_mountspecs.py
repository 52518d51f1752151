"""What `-v`, `--mount` and `--tmpfs` mean, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.container import HostConfig
from mooring.kit.mountspecs import Bind, Tmpfs, all_mounts, bind, tmpfs, volumes_from
from mooring.kit.volumespecs import ImageMount, Volume, check_options


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("/a:/b", Bind("/a", "/b")),
        ("/a/../c/:/b//d/", Bind("/c", "/b/d")),
        ("/a:/b:ro", Bind("/a", "/b", "ro", read_only=True)),
        ("/a:/b:rw,rshared,z", Bind("/a", "/b", "rw,rshared,z", propagation="rshared")),
        ("/a:/b:slave", Bind("/a", "/b", "slave", propagation="slave")),
        ("/b", Volume("/b")),
        ("data:/b", Volume("/b", "data")),
        ("data:/b:ro,nocopy", Volume("/b", "data", "ro,nocopy", read_only=True, nocopy=True)),
    ],
)
def test_a_bind(spec: str, expected: Bind | Volume) -> None:
    assert bind(spec) == expected


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("", InvalidParameter, "invalid volume specification: ''"),
        ("/a:", InvalidParameter, "invalid volume specification: '/a:'"),
        ("/a:/b:ro:x", InvalidParameter, "invalid volume specification: '/a:/b:ro:x'"),
        ("/a:ro", InvalidParameter, "invalid volume specification: '/a:ro'"),
        ("/a:/b:nope", InvalidParameter, "invalid mode: nope"),
        ("/a:/b:ro,rw", InvalidParameter, "invalid mode: ro,rw"),
        ("/a:b", InvalidParameter, "mount path must be absolute"),
        ("/a:/", InvalidParameter, "destination can't be '/'"),
        ("/a:/b/..", InvalidParameter, "destination can't be '/'"),
        ("../a:/b", InvalidParameter, "includes invalid characters for a local volume name"),
        ("a:/b", InvalidParameter, "create a: volume name is too short"),
        ("data:/b:shared", InvalidParameter, "field BindOptions must not be specified"),
        ("/a:/b:nocopy", InvalidParameter, "field VolumeOptions must not be specified"),
    ],
)
def test_a_bind_that_is_refused(spec: str, error: type[EngineError], words: str) -> None:
    with pytest.raises(error) as caught:
        bind(spec)
    assert words in caught.value.message
    assert type(caught.value) is error


def test_a_declared_volume_may_be_relative_to_the_root() -> None:
    assert all_mounts(HostConfig(), ["data", "./a/../b", "/c"]) == [
        Volume("/data"),
        Volume("/b"),
        Volume("/c"),
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ("noexec", "nosuid", "nodev")),
        ("size=1m,mode=700", ("noexec", "nosuid", "nodev", "size=1m", "mode=700")),
        ("exec", ("nosuid", "nodev", "exec")),
        ("ro,dev,suid,exec", ("ro", "dev", "suid", "exec")),
    ],
)
def test_a_tmpfs(options: str, expected: tuple[str, ...]) -> None:
    assert tmpfs("/t", options) == Tmpfs("/t", expected)


@pytest.mark.parametrize("options", ["bogus", "size", "upperdir=/etc", "noexec=1"])
def test_a_tmpfs_option_that_does_not_exist_is_refused(options: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid tmpfs option"):
        tmpfs("/t", options)


def host(**fields: Any) -> HostConfig:
    return HostConfig.model_validate(fields)


def test_parents_are_mounted_before_what_lies_below_them() -> None:
    mounts = all_mounts(host(Binds=["/x:/a/b/c", "/y:/a"], Tmpfs={"/a/b": ""}))
    assert [mount.destination for mount in mounts] == ["/a", "/a/b", "/a/b/c"]


def test_one_place_is_mounted_once() -> None:
    wanted = host(Binds=["/x:/a"], Mounts=[{"Type": "bind", "Source": "/y", "Target": "/a/"}])
    with pytest.raises(InvalidParameter, match="Duplicate mount point: /a"):
        all_mounts(wanted)


def test_a_volume_of_the_image_gives_way_to_the_users_mount() -> None:
    assert len(all_mounts(host(Binds=["/x:/data"]), ["/data/"])) == 1
    assert all_mounts(host(VolumeDriver="x"), ["/data/"]) == [Volume("/data", driver="x")]


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ({"Type": "bind", "Target": "/a"}, "field Source must not be empty"),
        ({"Type": "bind", "Source": "a", "Target": "/a"}, "mount path must be absolute"),
        ({"Type": "bind", "Source": "/a"}, "field Target must not be empty"),
        ({"Type": "bind", "Source": "/a", "Target": "a"}, "mount path must be absolute"),
        ({"Type": "bind", "Source": "/a", "Target": "/"}, "destination can't be '/'"),
        (
            {"Type": "bind", "Source": "/a", "Target": "/a", "BindOptions": {"Propagation": "x"}},
            "invalid propagation mode: x",
        ),
        (
            {"Type": "bind", "Source": "/a", "Target": "/a", "TmpfsOptions": {}},
            "TmpfsOptions must not be specified",
        ),
        ({"Type": "tmpfs", "Source": "/a", "Target": "/a"}, "Source must not be specified"),
        (
            {"Type": "tmpfs", "Target": "/a", "TmpfsOptions": {"SizeBytes": -1}},
            "invalid SizeBytes",
        ),
        ({"Type": "tmpfs", "Target": "/a", "TmpfsOptions": {"Mode": "x"}}, "invalid Mode"),
        ({"Type": "sandwich", "Target": "/a"}, 'type "sandwich": mount type unknown'),
    ],
)
def test_a_mount_that_is_refused(mount: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        all_mounts(host(Mounts=[mount]))
    assert words in caught.value.message


def test_a_tmpfs_of_mounts_has_its_size_and_mode() -> None:
    options = {"SizeBytes": 1048576, "Mode": 0o700, "Options": [["exec"]]}
    [mount] = all_mounts(host(Mounts=[{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": options}]))
    assert isinstance(mount, Tmpfs)
    assert mount.options == ("nosuid", "nodev", "size=1048576", "mode=700")


def test_read_only_binds_are_read_only_all_the_way_down_unless_told_otherwise() -> None:
    def one(**options: bool) -> Bind:
        given = {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}
        [mount] = all_mounts(host(Mounts=[{**given, "BindOptions": options}]))
        assert isinstance(mount, Bind)
        return mount

    assert one().read_only_recursive
    assert not one(ReadOnlyNonRecursive=True).read_only_recursive
    assert not one(NonRecursive=True).recursive


def test_a_volume_of_mounts_has_its_options() -> None:
    options = {
        "NoCopy": True,
        "Subpath": "a//b/",
        "Labels": {"k": "v"},
        "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs"}},
    }
    given = {"Type": "volume", "Source": "data", "Target": "/t", "VolumeOptions": options}
    [mount] = all_mounts(host(Mounts=[given]))
    assert mount == Volume(
        "/t",
        "data",
        nocopy=True,
        subpath="a/b",
        driver="local",
        options={"type": "tmpfs", "device": "tmpfs"},
        labels={"k": "v"},
    )


def test_an_image_is_a_mount() -> None:
    given = {"Type": "image", "Source": "bb", "Target": "/t", "ImageOptions": {"Subpath": "etc"}}
    assert all_mounts(host(Mounts=[given])) == [ImageMount("/t", "bb", "etc")]


@pytest.mark.parametrize("subpath", ["/etc", "..", "../x", "a/../../x"])
def test_a_subpath_leads_nowhere_else(subpath: str) -> None:
    given = {"Type": "volume", "Source": "data", "Target": "/t"}
    with pytest.raises(InvalidParameter, match="subpath must be a relative path"):
        all_mounts(host(Mounts=[{**given, "VolumeOptions": {"Subpath": subpath}}]))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("web", ("web", "")), ("web:ro", ("web", "ro")), ("w:z,rw", ("w", "z,rw"))],
)
def test_volumes_from(spec: str, expected: tuple[str, str]) -> None:
    assert volumes_from(spec) == expected


@pytest.mark.parametrize("spec", ["", "web:", "web:shared", "web:nocopy", "web:zzz"])
def test_volumes_from_that_is_refused(spec: str) -> None:
    with pytest.raises(InvalidParameter, match=r"volumes-from|invalid mode"):
        volumes_from(spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"foo": "bar"}, 'invalid option: "foo"'),
        ({"type": "tmpfs"}, 'missing required option: "device"'),
        ({"o": "bind", "device": "/x"}, 'missing required option: "type"'),
        ({"size": "1m"}, "no quota support"),
    ],
)
def test_options_of_a_volume_that_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        check_options("data", options)
