"""ps, inspect, images, info, version, events: what a client reads."""

from __future__ import annotations

import io
import json
import tarfile
from urllib.parse import quote

import pytest

from .harness import Engine, UnixHTTP

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["name=we"], {"web"}),
        (["status=exited"], {"done"}),
        (["status=running"], {"web"}),
        (["label=tier"], {"web", "done"}),
        (["label=tier=front"], {"web"}),
        (["label=tier", "exited=0"], {"done"}),
        (["ancestor=bb"], {"web", "done"}),
        (["ancestor=other"], set()),
        (["since=done"], {"web"}),
        (["before=web"], {"done"}),
    ],
)
def test_ps_filters(docker: Engine, filters: list[str], names: set[str]) -> None:
    docker.docker("run", "--name", "done", "--label", "tier=back", "bb", "true")
    docker.docker("run", "-d", "--name", "web", "--label", "tier=front", "bb", "sleep", "100")
    args = [part for text in filters for part in ("--filter", text)]
    assert set(docker.out("ps", "-a", "--format", "{{.Names}}", *args).split()) == names


def test_ps_shows_newest_first_and_the_running_only(docker: Engine) -> None:
    for name in ("one", "two", "three"):
        docker.docker("run", "-d", "--name", name, "bb", "sleep", "100")
    docker.docker("kill", "two")
    assert docker.out("ps", "--format", "{{.Names}}").split() == ["three", "one"]
    assert docker.out("ps", "-a", "--format", "{{.Names}}").split() == ["three", "two", "one"]
    assert docker.out("ps", "-n", "1", "--format", "{{.Names}}") == "three"
    assert docker.out("ps", "-a", "--filter", "name=two", "--format", "{{.Status}}").startswith(
        "Exited (137)"
    )


def test_a_bad_filter_is_refused(docker: Engine) -> None:
    answer = docker.api("GET", '/containers/json?filters={"nope":["x"]}')
    assert (answer.status, answer.message) == (400, "invalid filter 'nope'")


def test_inspect_has_what_clients_read(docker: Engine) -> None:
    made = docker.out("run", "-d", "--name", "web", "-e", "A=1", "--memory", "64m", "bb",
                      "sleep", "100")  # fmt: skip
    shown = docker.inspect(made[:12])
    assert shown["Id"] == made
    assert shown["Name"] == "/web"
    assert (shown["Path"], shown["Args"]) == ("sleep", ["100"])
    assert "A=1" in shown["Config"]["Env"]
    assert shown["HostConfig"]["Memory"] == 64 << 20
    assert shown["State"]["Pid"] > 0
    assert docker.out("inspect", "-f", "{{.State.Running}} {{.Driver}}", "web") == "true overlay2"


def test_info_and_version_are_read_by_the_cli(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "100")
    assert docker.out("info", "-f", "{{.ContainersRunning}} {{.OSType}}") == "1 linux"
    assert docker.out("version", "-f", "{{.Server.Os}} {{.Server.MinAPIVersion}}") == "linux 1.24"


def test_events_are_durable_and_filtered(docker: Engine) -> None:
    made = docker.out("run", "--rm", "--name", "web", "--label", "tier=x", "bb", "true")
    assert made == ""
    mine = docker.events(container="web", label="tier=x")
    last = mine[-1]["Actor"]["ID"]
    actions = [item["Action"] for item in mine if item["Actor"]["ID"] == last]
    assert actions == ["create", "attach", "start", "die", "destroy"]
    assert mine[-2]["Actor"]["Attributes"]["exitCode"] == "0"
    assert mine[-2]["Actor"]["Attributes"]["image"] == "bb"


def test_live_events_arrive(docker: Engine) -> None:
    filters = quote(json.dumps({"container": ["live"]}))
    connection = UnixHTTP(docker.socket)
    connection.request("GET", f"/events?filters={filters}")
    stream = connection.getresponse()  # its head is there: from now on nothing is missed
    docker.docker("run", "--name", "live", "bb", "true")
    seen = [json.loads(stream.readline())["Action"] for _ in range(4)]
    connection.close()
    assert seen == ["create", "attach", "start", "die"]


def test_images_are_tagged_listed_and_removed(docker: Engine) -> None:
    docker.docker("tag", "bb", "other:v1")
    docker.docker("tag", "bb", "some.host:5000/path/name:v2")
    listed = docker.out("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert {"bb:latest", "other:v1", "some.host:5000/path/name:v2"} <= set(listed)
    assert docker.out("rmi", "other:v1") == "Untagged: other:v1"
    docker.docker("rmi", "some.host:5000/path/name:v2")
    assert docker.docker("rmi", "other:v1", check=False).returncode == 1
    assert (
        docker.out("image", "inspect", "-f", "{{.Os}} {{.RepoTags}}", "bb") == "linux [bb:latest]"
    )
    assert "busybox" in docker.out("history", "bb")


def test_import_makes_an_image_with_changes(docker: Engine) -> None:
    layer = docker.folder / "root.tar"
    from image import busybox_layer

    layer.write_bytes(busybox_layer())
    change = 'CMD ["echo", "imported"]'
    image = docker.out("import", "--change", change, "--change", "ENV A=b", str(layer), "imp:1")
    assert image.startswith("sha256:")
    assert docker.out("run", "--rm", "imp:1") == "imported"
    docker.docker("run", "-d", "--name", "web", "imp:1", "sleep", "100")
    assert docker.docker("rmi", "imp:1", check=False).returncode == 1
    docker.docker("rm", "-f", "web")
    assert "Deleted: sha256:" in docker.out("rmi", "imp:1")


def test_entrypoint_and_command_of_the_image_and_of_the_user(docker: Engine) -> None:
    docker.load("ep", {"Entrypoint": ["echo", "ep"], "Cmd": ["cmd"], "WorkingDir": "/tmp"})
    assert docker.out("run", "--rm", "ep") == "ep cmd"
    assert docker.out("run", "--rm", "ep", "mine") == "ep mine"
    assert docker.out("run", "--rm", "--entrypoint", "pwd", "ep") == "/tmp"
    docker.docker("rmi", "ep")


def test_a_damaged_archive_changes_nothing(docker: Engine) -> None:
    before = docker.out("images", "-q")
    good = (docker.folder / "image.tar").read_bytes()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("nothing")
        tar.addfile(info, io.BytesIO())
    for data in (good[: len(good) // 2], b"not a tar at all", out.getvalue()):
        answer = docker.api("POST", "/images/load", raw=data,
                            headers={"Content-Type": "application/x-tar"})  # fmt: skip
        assert answer.status >= 400 or b'"error"' in answer.body
    assert docker.out("images", "-q") == before
