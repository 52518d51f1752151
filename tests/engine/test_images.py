"""Images with the docker CLI: commit, save and load, export, diff, removal, disk usage."""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlencode

import pytest

from .harness import Engine, UnixHTTP, engine, until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def e() -> Iterator[Engine]:
    with engine() as made:
        yield made


@pytest.fixture(autouse=True)
def no_containers(e: Engine) -> Iterator[None]:
    yield
    e.remove_all()


def test_commit_keeps_what_was_written_deleted_and_said(e: Engine) -> None:
    script = (
        "echo hi > /hi; rm /bin/ls; mkdir -m 700 /secret; ln /hi /hard; chmod 711 /;"
        " rm -r /home; mkdir /home"
    )
    e.docker("run", "--name", "box", "--env", "A=1", "--label", "l=v", "bb", "sh", "-c", script)
    made = e.out("commit", "-a", "me", "-m", "why", "-c", 'CMD ["cat", "/hi"]', "box", "new:1")
    assert e.out("run", "--rm", "new:1") == "hi"
    seen = e.out(
        "run",
        "--rm",
        "new:1",
        "sh",
        "-c",
        "stat -c %a /secret / && stat -c %h /hi"
        " && test ! -e /bin/ls && test ! -e /home/app && echo gone",
    )
    assert seen.split() == ["700", "711", "2", "gone"]
    image = e.api("GET", "/images/new:1/json").json
    assert image["Id"] == made
    assert (image["Author"], image["Comment"]) == ("me", "why")
    assert image["Parent"] == e.api("GET", "/images/bb/json").json["Id"]
    assert image["Config"]["Labels"] == {"l": "v"}
    assert "A=1" in image["Config"]["Env"]
    history = e.api("GET", "/images/new:1/history").json
    assert history[0]["CreatedBy"] == f"sh -c {script}"
    assert history[0]["Size"] == len("hi\n")
    told = e.events(type="container", container="box")[-1]
    assert (told["Action"], told["Actor"]["Attributes"]["imageRef"]) == ("commit", "new:1")


def test_commit_pauses_a_running_container_unless_told_not_to(e: Engine) -> None:
    e.docker("run", "-d", "--name", "box", "bb", "sleep", "100")
    e.docker("commit", "box", "paused")
    assert e.actions("box")[-3:] == ["pause", "commit", "unpause"]
    e.docker("commit", "--pause=false", "box", "unpaused")
    assert e.actions("box")[-1] == "commit"
    assert e.state_of("box") == "running"


def test_commit_of_a_container_that_wrote_nothing_adds_no_layer(e: Engine) -> None:
    e.docker("create", "--name", "box", "bb")
    e.docker("commit", "box", "same")
    layers = [
        e.api("GET", f"/images/{name}/json").json["RootFS"]["Layers"] for name in ("bb", "same")
    ]
    assert layers[0] == layers[1]
    assert e.api("GET", "/images/same/history").json[0]["Size"] == 0


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("container=nobody", 404, "No such container: nobody"),
        ("container=box&changes=RUN+x", 400, "run is not a valid change command"),
        ("container=box&repo=UPPER", 400, "must be lowercase"),
    ],
)
def test_a_commit_that_cannot_be_is_refused_and_leaves_nothing(
    e: Engine, query: str, status: int, words: str
) -> None:
    e.docker("create", "--name", "box", "bb")
    before = e.api("GET", "/images/json?all=1").json
    answer = e.api("POST", f"/commit?{query}")
    assert answer.status == status
    assert words in answer.message
    assert e.api("GET", "/images/json?all=1").json == before


def test_saved_images_come_back_with_their_names_and_ids(e: Engine) -> None:
    e.docker("run", "--name", "box", "bb", "sh", "-c", "echo saved > /f")
    e.docker("commit", "box", "keep:1")
    e.docker("tag", "keep:1", "keep:2")
    archive = e.folder / "saved.tar"
    e.docker("save", "-o", str(archive), "keep", "bb:latest")
    ids = {name: e.out("inspect", "-f", "{{.Id}}", name) for name in ("keep:1", "keep:2", "bb")}
    e.remove_all()
    e.docker("rmi", "keep:1", "keep:2")
    e.docker("load", "-i", str(archive))
    assert {name: e.out("inspect", "-f", "{{.Id}}", name) for name in ids} == ids
    assert e.out("run", "--rm", "keep:2", "cat", "/f") == "saved"


def test_an_archive_is_an_oci_layout_and_a_docker_archive(e: Engine) -> None:
    archive = e.folder / "both.tar"
    e.docker("save", "-o", str(archive), "bb")
    with tarfile.open(archive) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    (described,) = json.loads(files["index.json"])["manifests"]
    assert described["annotations"]["io.containerd.image.name"] == "docker.io/library/bb:latest"
    manifest = json.loads(files[f"blobs/sha256/{described['digest'][7:]}"])
    (entry,) = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == ["bb:latest"]
    assert entry["Config"] == f"blobs/sha256/{manifest['config']['digest'][7:]}"
    assert entry["Layers"] == [
        f"blobs/sha256/{layer['digest'][7:]}" for layer in manifest["layers"]
    ]
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert e.events(type="image")[-1]["Action"] == "save"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/images/nope/get", 404, "No such image: nope"),
        ("/images/nope:1/get", 404, "reference does not exist"),
        ("/images/UPPER/get", 400, "must be lowercase"),
        ("/images/get", 400, "no image was named"),
        ("/images/get?names=bb&names=nope", 404, "No such image: nope"),
    ],
)
def test_what_cannot_be_saved_is_said_before_the_first_byte(
    e: Engine, path: str, status: int, words: str
) -> None:
    answer = e.api("GET", path)
    assert (answer.status, words in answer.message) == (status, True)


def test_diff_says_what_was_added_changed_and_deleted(e: Engine) -> None:
    script = "mkdir -p /a/b; echo x > /a/b/c; rm /bin/ls; chmod 700 /home; rm -r /var; mkdir /var"
    e.docker("run", "--name", "box", "bb", "sh", "-c", script)
    assert e.out("diff", "box").splitlines() == [
        "A /a", "A /a/b", "A /a/b/c", "C /bin", "D /bin/ls", "C /home",
    ]  # fmt: skip


def test_diff_tells_of_a_directory_by_what_is_in_it_and_not_by_its_times(e: Engine) -> None:
    script = (
        "touch /tmp; echo x > /root/x; rm /root/x; echo x >> /etc/passwd;"
        "rm -r /home; mkdir /home; chown 3 /var"
    )
    e.docker("run", "--name", "box", "bb", "sh", "-c", script)
    # As dockerd says it of the same container.
    assert e.out("diff", "box").splitlines() == [
        "C /etc", "C /etc/passwd", "C /home", "D /home/app", "C /var",
    ]  # fmt: skip


def test_diff_of_a_container_that_never_ran_is_empty(e: Engine) -> None:
    e.docker("create", "--name", "box", "bb")
    assert e.api("GET", "/containers/box/changes").json is None


def test_export_is_what_the_container_sees(e: Engine) -> None:
    e.docker("run", "--name", "box", "bb", "sh", "-c", "rm /bin/ls; echo mine > /etc/mine")
    archive = e.folder / "export.tar"
    e.docker("export", "-o", str(archive), "box")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        assert tar.extractfile("etc/mine").read() == b"mine\n"  # type: ignore[union-attr]
    assert "bin/busybox" in names
    assert "bin/ls" not in names
    assert not [name for name in names if ".wh." in name]
    assert e.actions("box")[-1] == "export"
    e.docker("import", "-c", "CMD cat /etc/mine", str(archive), "exported")
    assert e.out("run", "--rm", "exported") == "mine"


def test_an_image_removed_by_force_stays_as_long_as_a_stopped_container_needs_it(
    e: Engine,
) -> None:
    e.docker("run", "--name", "maker", "bb", "sh", "-c", "echo kept > /f")
    image = e.out("commit", "maker", "forced")
    e.docker("rm", "maker")
    e.docker("run", "--name", "box", "forced", "cat", "/f")
    assert e.docker("rmi", "forced", check=False).returncode == 1
    e.docker("rmi", "-f", image)
    assert e.api("GET", f"/images/{image}/json").status == 404
    assert image not in e.out("images", "-aq", "--no-trunc")
    assert e.out("start", "-a", "box") == "kept"
    layers = len(list((e.state / "layers").glob("?" * 64)))
    e.docker("rm", "box")
    until("its layer is gone", lambda: len(list((e.state / "layers").glob("?" * 64))) < layers)


def test_an_image_that_others_were_made_upon_cannot_go_before_them(e: Engine) -> None:
    e.docker("run", "--name", "one", "bb", "sh", "-c", "echo 1 > /f")
    parent = e.out("commit", "one", "parent")
    e.docker("run", "--name", "two", "parent", "sh", "-c", "echo 2 > /f")
    e.docker("commit", "two", "child")
    e.remove_all()
    refused = e.docker("rmi", "-f", parent, check=False)
    assert "(cannot be forced) - image has dependent child images" in refused.stderr
    assert e.out("rmi", "parent") == "Untagged: parent:latest"
    assert parent not in e.out("images", "-q", "--no-trunc").split()
    assert parent in e.out("images", "-aq", "--no-trunc").split()
    removed = e.out("rmi", "child")
    assert f"Deleted: {parent}" in removed
    assert e.api("GET", f"/images/{parent}/json").status == 404


def test_prune_takes_what_has_no_name_and_with_all_what_has_no_container(e: Engine) -> None:
    for number in range(3):
        e.docker("run", "--name", f"c{number}", "bb", "sh", "-c", f"echo {number} > /f")
    first = e.out("commit", "c0", "pruned")
    second = e.out("commit", "-c", "LABEL keep=1", "c1", "pruned")
    e.docker("commit", "c2", "unused")
    e.docker("run", "--name", "user", "pruned", "true")
    pruned = e.api("POST", "/images/prune").json
    gone = [row["Deleted"] for row in pruned["ImagesDeleted"] if "Deleted" in row]
    assert gone[0] == first
    assert pruned["SpaceReclaimed"] == len("0\n")
    query = urlencode({"filters": json.dumps({"dangling": ["false"], "label!": ["made"]})})
    pruned = e.api("POST", f"/images/prune?{query}").json
    untagged = [row["Untagged"] for row in pruned["ImagesDeleted"] if "Untagged" in row]
    assert "unused:latest" in untagged
    assert "pruned:latest" not in untagged
    assert e.api("GET", f"/images/{second}/json").status == 200
    assert e.events(type="image")[-1]["Action"] == "prune"


@pytest.mark.parametrize(
    ("path", "filters", "words"),
    [
        ("images/prune", {"until": ["bad"]}, 'failed to parse value as time or duration: "bad"'),
        ("images/prune", {"dangling": ["false", "true"]}, "invalid filter 'dangling=[false true]'"),
        ("images/search", {"stars": ["x"]}, "Invalid filter 'stars=x'"),
    ],
)
def test_a_filter_that_is_wrong_is_refused_in_dockers_words(
    e: Engine, path: str, filters: dict[str, list[str]], words: str
) -> None:
    query = urlencode({"term": "x", "filters": json.dumps(filters)})
    method = "POST" if path.endswith("prune") else "GET"
    answer = e.api(method, f"/{path}?{query}")
    assert (answer.status, answer.message) == (400, words)


def test_disk_usage_counts_each_layer_once(e: Engine) -> None:
    e.docker("run", "--name", "box", "bb", "sh", "-c", "echo 12345 > /f")
    e.docker("commit", "box", "usage")
    found = e.api("GET", "/system/df").json
    images = {(row["RepoTags"] or [""])[0]: row for row in found["Images"]}
    base, made = images["bb:latest"], images["usage:latest"]
    assert made["Size"] == base["Size"] + len("12345\n")
    assert made["SharedSize"] == base["Size"]
    assert (base["Containers"], made["Containers"]) == (1, 0)
    assert found["LayersSize"] < sum(row["Size"] for row in found["Images"])
    (box,) = found["Containers"]
    assert (box["Names"], box["SizeRw"]) == (["/box"], len("12345\n"))
    assert found["BuildCache"] == []
    only = e.api("GET", "/system/df?type=image").json
    assert "Containers" not in only and only["Images"]
    assert e.api("GET", "/system/df?type=nonsense").status == 400
    assert "Images" in e.out("system", "df")
    assert "usage" in e.out("system", "df", "-v")


def test_import_gets_a_root_file_system_from_a_url(e: Engine) -> None:
    folder = e.folder / "served"
    folder.mkdir()
    e.docker("create", "--name", "box", "bb")
    e.docker("export", "-o", str(folder / "rootfs.tar"), "box")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        out = e.out("import", "-c", "CMD echo fetched", f"{url}/rootfs.tar", "fetched")
        assert f"Downloading from {url}/rootfs.tar" in out
        missing = e.docker("import", f"{url}/missing.tar", check=False)
        server.shutdown()
    assert "failed to GET" in missing.stderr and "404" in missing.stderr
    gone = e.docker("import", f"{url}/rootfs.tar", check=False).stderr
    words = f"dial tcp 127.0.0.1:{server.server_port}: connect: connection refused"
    assert gone == f'Error response from daemon: Get "{url}/rootfs.tar": {words}\n'
    junk = e.docker("import", "-", stdin="junk" * 500, check=False).stderr
    assert junk == "Error response from daemon: archive/tar: invalid tar header\n"
    assert e.out("run", "--rm", "fetched") == "fetched"
    history = e.api("GET", "/images/fetched/history").json
    assert history[0]["Comment"] == f"Imported from {url}/rootfs.tar"
    assert e.api("POST", "/images/create?fromSrc=file:///etc/passwd").status == 400


def test_a_load_that_is_not_quiet_tells_of_the_layers_that_were_not_here(e: Engine) -> None:
    e.docker("run", "--name", "box", "bb", "sh", "-c", "echo told > /f")
    e.docker("commit", "box", "told")
    archive = e.folder / "told.tar"
    e.docker("save", "-o", str(archive), "told")
    top = e.api("GET", "/images/told/json").json["RootFS"]["Layers"][-1]
    e.docker("rmi", "told")
    answers = [e.api("POST", "/images/load?quiet=0", raw=archive.read_bytes()) for _ in range(2)]
    first, second = ([json.loads(line) for line in answer.body.splitlines()] for answer in answers)
    assert [(line.get("status"), line.get("id")) for line in first] == [
        ("Loading layer", top[7:19]),
        (None, None),
    ]
    assert first[0]["progressDetail"]["total"] > 0
    assert second == [{"stream": "Loaded image: told:latest\n"}]


def test_a_load_tells_how_far_a_layer_is_while_the_rest_of_it_is_still_to_come(e: Engine) -> None:
    e.docker("run", "--name", "box", "bb", "sh", "-c", "head -c 8000000 /dev/urandom > /f")
    e.docker("commit", "box", "large")
    archive = e.folder / "large.tar"
    e.docker("save", "-o", str(archive), "large")
    top = e.api("GET", "/images/large/json").json["RootFS"]["Layers"][-1]
    e.docker("rmi", "large")
    data = archive.read_bytes()
    begin = data.index(top[7:].encode()) + 4_000_000
    connection = UnixHTTP(e.socket)
    connection.putrequest("POST", "/images/load?quiet=0")
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data[:begin])
    # The other half is sent only when there was a word on the first.
    answer = connection.sock.makefile("rb")
    lines = iter(lambda: answer.readline(), b"")
    word = next(json.loads(line) for line in lines if b"Loading layer" in line)
    connection.send(data[begin:])
    rest = [json.loads(line) for line in lines if line.startswith(b"{")]
    connection.close()
    assert (word["status"], word["id"]) == ("Loading layer", top[7:19])
    assert 0 < word["progressDetail"]["current"] < word["progressDetail"]["total"]
    assert word["progress"].startswith("[")
    last = [line["progressDetail"] for line in rest if line.get("id") == top[7:19]][-1]
    assert last["current"] == last["total"] > 8_000_000
    assert rest[-1] == {"stream": "Loaded image: large:latest\n"}
    e.docker("rmi", "large")


@pytest.mark.parametrize("path", ["/images/bb/json", "/images/bb/history", "/images/bb/get"])
def test_a_platform_that_is_named_has_to_be_the_images(e: Engine, path: str) -> None:
    own = e.api("GET", "/images/bb/json").json["Architecture"]
    for text, status in (
        (json.dumps({"os": "linux", "architecture": own}), 200),
        (json.dumps({"os": "linux", "architecture": "s390x"}), 404),
        ("{", 400),
    ):
        assert e.api("GET", f"{path}?platform={quote(text)}").status == status
