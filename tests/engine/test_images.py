"""Images with the docker CLI: commit, save and load, export, diff, removal, disk usage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Engine, engine

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
    script = "echo hi > /hi; rm /bin/ls; mkdir -m 700 /secret; ln /hi /hard; chmod 711 /"
    e.docker("run", "--name", "box", "--env", "A=1", "--label", "l=v", "bb", "sh", "-c", script)
    made = e.out("commit", "-a", "me", "-m", "why", "-c", 'CMD ["cat", "/hi"]', "box", "new:1")
    assert e.out("run", "--rm", "new:1") == "hi"
    seen = e.out(
        "run",
        "--rm",
        "new:1",
        "sh",
        "-c",
        "stat -c %a /secret / && stat -c %h /hi && test ! -e /bin/ls && echo gone",
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
    assert e.actions("box")[-1] == "commit"


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
