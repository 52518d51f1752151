"""What is read from the records: lists, inspect, filters, images, networks."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from mooring.gateway.schema.containers import status
from mooring.gateway.schema.texts import ZERO_TIME, duration, next_change, rfc3339
from mooring.gateway.views.patterns import compile_pattern
from mooring.kit.endpoints import predefined_id
from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import (
    ContainerConfig,
    ContainerRecord,
    Endpoint,
    Health,
    HealthConfig,
    HostConfig,
    MountPoint,
    NetworkState,
    State,
)
from mooring.kit.models.host import HostResize, OpenStream
from mooring.kit.models.image import HistoryEntry

from .client import Answer, Client
from .fakes import SECOND, FakeEngine

MINUTE, HOUR, DAY = 60, 3600, 86400


async def listed(client: Client, filters: dict[str, Any] | None = None, query: str = "") -> Answer:
    path = f"/containers/json?{query}"
    if filters is not None:
        path += f"&filters={quote(json.dumps(filters))}"
    return await client.get(path)


async def names(client: Client, filters: dict[str, Any] | None = None, query: str = "") -> set[str]:
    answer = await listed(client, filters, query)
    assert answer.status == 200, answer.body
    return {row["Names"][0][1:] for row in answer.json}


@pytest.fixture
async def three(engine: FakeEngine) -> list[ContainerRecord]:
    """One that runs, one that was created, one that has exited."""
    await engine.add_image("bb")
    return [
        await engine.running(
            "one",
            config=ContainerConfig(labels={"app": "x", "tier": "front"}),
            network=NetworkState(
                endpoints={
                    "bridge": Endpoint(network_id=predefined_id("bridge"), ip_address="10.0.0.2")
                }
            ),
            health=Health(status="healthy"),
            created_ns=1 * SECOND,
        ),
        await engine.add(
            "two",
            config=ContainerConfig(labels={"app": "y"}, exposed_ports={"80/tcp": {}}),
            host_config=HostConfig(network_mode="none"),
            created_ns=2 * SECOND,
        ),
        await engine.add(
            "three",
            state=State.EXITED,
            exit_code=3,
            finished_ns=time.time_ns(),
            mounts=[MountPoint(source="/src", destination="/dst")],
            created_ns=3 * SECOND,
        ),
    ]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (None, {"one"}),
        ({"status": ["created", "exited"]}, {"two", "three"}),
        ({"status": {"running": True, "exited": False}}, {"one"}),
        ({"exited": ["3"]}, {"three"}),
        ({"exited": ["0"]}, set()),
        ({"name": ["^/?one$"]}, {"one"}),
        ({"label": ["app=x", "tier"]}, {"one"}),
        ({"label": ["app=x", "none"]}, set()),
        ({"health": ["healthy"]}, {"one"}),
        ({"network": ["bridge"]}, {"one"}),
        ({"ancestor": ["bb"]}, {"one"}),
        ({"ancestor": ["nothing"]}, set()),
        ({"is-task": ["false"]}, {"one"}),
        ({"is-task": ["true"]}, set()),
    ],
)
async def test_running_containers_are_filtered(
    client: Client, three: object, filters: dict[str, Any] | None, expected: set[str]
) -> None:
    assert await names(client, filters) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"name": ["t"]}, {"two", "three"}),
        ({"before": ["two"]}, {"one"}),
        ({"since": ["two"]}, {"three"}),
        ({"volume": ["/dst"]}, {"three"}),
        ({"expose": ["80"]}, {"two"}),
        ({"expose": ["1-79/tcp", "443"]}, set()),
        ({"network": ["none"]}, {"two"}),
        ({"label": ["app"]}, {"one", "two"}),
        ({"id": [""]}, {"one", "two", "three"}),
    ],
)
async def test_all_containers_are_filtered(
    client: Client, three: object, filters: dict[str, Any], expected: set[str]
) -> None:
    assert await names(client, filters, "all=1") == expected


@pytest.mark.parametrize(
    ("filters", "status", "words"),
    [
        ({"nope": ["x"]}, 400, "invalid filter 'nope'"),
        ({"status": ["odd"]}, 400, "invalid filter 'status=odd'"),
        ({"health": ["odd"]}, 400, "invalid filter 'health=odd'"),
        ({"exited": ["x"]}, 400, "invalid filter 'exited=x'"),
        ({"name": ["("]}, 400, "invalid filter 'name=("),
        ({"name": ["(a+)+$"]}, 400, "too complex"),
        ({"label": "x"}, 400, "invalid filter 'label'"),
        ({"is-task": ["maybe"]}, 400, "is-task"),
        ({"publish": ["70000"]}, 400, "publish=70000"),
        ({"before": ["nobody"]}, 404, "No such container: nobody"),
        ([1], 400, "not a JSON object"),
    ],
)
async def test_bad_filters_are_refused(
    client: Client, filters: Any, status: int, words: str
) -> None:
    answer = await listed(client, filters)
    assert (answer.status, words in answer.message) == (status, True), answer.body


async def test_an_ancestor_is_what_an_image_was_made_upon(
    client: Client, engine: FakeEngine
) -> None:
    base = await engine.add_image("base")
    steps = [HistoryEntry(created_by="ENV a=b")]
    built = await engine.add_image("built", parent=base.id, layers=base.layers, history=steps)
    await engine.add_image("loaded", layers=[*base.layers, *(await engine.add_image()).layers])
    await engine.add_image("sibling", layers=base.layers)
    for name in ("base", "built", "loaded", "sibling"):
        digest = hashlib.sha256(name.encode()).hexdigest()
        await engine.add(f"of-{name}", image=name, image_id=f"sha256:{digest}")
    assert await names(client, {"ancestor": ["base"]}, "all=1") == {
        "of-base",
        "of-built",
        "of-loaded",
    }
    assert await names(client, {"ancestor": [built.id]}, "all=1") >= {"of-built"}
    assert await names(client, {"ancestor": ["sibling"]}, "all=1") >= {"of-sibling"}
    assert "of-base" not in await names(client, {"ancestor": ["built", "sibling"]}, "all=1")


async def test_the_list_is_newest_first_and_limited(client: Client, three: object) -> None:
    rows = (await listed(client, query="all=true")).json
    assert [row["Names"] for row in rows] == [["/three"], ["/two"], ["/one"]]
    assert (await listed(client, query="limit=1")).json[0]["Names"] == ["/three"]
    assert (await client.get("/containers/json?limit=x")).status == 400
    assert rows[1]["Status"] == "Created"
    assert rows[0]["Status"].startswith("Exited (3) ")
    assert rows[2]["Image"] == "bb"


async def test_no_containers_is_an_empty_array(client: Client) -> None:
    assert (await client.get("/containers/json")).body == b"[]\n"


async def test_a_container_of_an_image_without_a_name_shows_its_id(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web", image="gone")
    rows = (await client.get("/containers/json")).json
    assert rows[0]["Image"] == record.image_id
    assert (await client.get("/containers/web/json")).json["Config"]["Image"] == ""


async def test_containers_are_found_by_every_name(client: Client, three: Any) -> None:
    one = three[0]
    for name in (one.id, one.id[:12], one.id[:3], "one", "/one", "%2Fone"):
        answer = await client.get(f"/containers/{name}/json")
        assert answer.json["Id"] == one.id
    assert (await client.get("/containers/ON/json")).message == "No such container: ON"
    assert (await client.get("/containers/one/x/json")).status == 404


async def test_a_prefix_of_two_ids_is_ambiguous(client: Client, engine: FakeEngine) -> None:
    for at in range(40):
        await engine.add(f"c{at}")
    answers = [await client.get(f"/containers/{digit}/json") for digit in "0123456789abcdef"]
    ambiguous = [answer for answer in answers if answer.status == 400]
    assert ambiguous
    assert "multiple IDs found with provided prefix" in ambiguous[0].message


async def test_inspect_is_complete(client: Client, three: Any) -> None:
    found = (await client.get("/containers/one/json")).json
    assert found["Name"] == "/one"
    assert found["State"]["Running"] is True
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["NetworkSettings"]["IPAddress"] == "10.0.0.2"
    assert len(found["NetworkSettings"]["Networks"]["bridge"]["NetworkID"]) == 64
    assert found["HostConfig"]["NetworkMode"] == "bridge"
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert found["HostConfig"]["MaskedPaths"]
    assert found["HostnamePath"] == f"/run/m/shims/{found['Id']}.1/hostname"
    for name in ("Args", "Mounts"):
        assert isinstance(found[name], list)
    created = (await client.get("/containers/two/json")).json
    assert created["State"]["StartedAt"] == ZERO_TIME
    exited = (await client.get("/containers/three/json")).json
    assert exited["Mounts"][0]["Destination"] == "/dst"


async def test_inspect_leaves_out_what_is_not_set(client: Client, engine: FakeEngine) -> None:
    health = HealthConfig(test=["CMD", "true"], interval=5 * SECOND)
    config = ContainerConfig(healthcheck=health, stop_timeout=0)
    await engine.add("one", config=config)
    for version in ("", "/v1.41"):
        found = (await client.get(f"{version}/containers/one/json")).json["Config"]
        assert found["Healthcheck"] == {"Test": ["CMD", "true"], "Interval": 5 * SECOND}
        assert found["StopTimeout"] == 0
        assert not {"MacAddress", "StopSignal", "Shell"} & set(found)


async def test_sizes_are_asked_of_the_host(client: Client, three: object) -> None:
    rows = (await client.get("/containers/json?size=1&all=1")).json
    assert {(row["SizeRw"], row["SizeRootFs"]) for row in rows} == {(3, 8)}
    assert (await client.get("/containers/one/json?size=true")).json["SizeRw"] == 3
    for path in ("/containers/json?size=0", "/containers/one/json?size=false"):
        assert "SizeRw" not in (await client.get(path)).body.decode()


async def test_the_records_change_and_so_does_what_is_shown(
    client: Client, engine: FakeEngine
) -> None:
    record = await engine.running("web")
    assert await names(client) == {"web"}
    await engine.change(record.id, name="renamed")
    assert await names(client) == {"renamed"}
    assert (await client.get("/containers/web/json")).status == 404
    assert (await client.get("/containers/renamed/json")).json["Id"] == record.id


async def test_top_resize_and_stats_ask_the_host(client: Client, engine: FakeEngine) -> None:
    record = await engine.running("web")
    await engine.add("idle")
    top = await client.get("/containers/web/top?ps_args=aux")
    assert top.json == {"Titles": ["PID", "CMD"], "Processes": [["10", "aux"]]}
    assert (await client.get("/containers/idle/top")).status == 409
    assert (await client.post("/containers/web/resize?h=24&w=80")).status == 200
    assert (engine.asked[-1].rows, engine.asked[-1].columns) == (24, 80)
    assert isinstance(engine.asked[-1], HostResize)
    for bad in ("h=a&w=1", "h=1", "h=-1&w=1"):
        assert (await client.post(f"/containers/web/resize?{bad}")).status == 400
    stats = await client.get("/containers/web/stats?stream=0&one-shot=1")
    assert (stats.json["id"], stats.json["memory_stats"]) == (record.id, {"usage": 5})
    idle = await client.get("/containers/idle/stats?stream=0")
    assert idle.json["cpu_stats"]["cpu_usage"]["total_usage"] == 0


async def test_tail_is_the_hosts_to_find(client: Client, engine: FakeEngine) -> None:
    await engine.running("web")
    for text, expected in (("2", 2), ("all", None), ("-1", None), ("0", None)):
        await client.get(f"/containers/web/logs?stdout=1&tail={text}")
        opened = engine.asked[-1]
        assert isinstance(opened, OpenStream)
        assert (opened.tail, opened.from_end) == (expected, text == "0")


async def test_images_are_listed_found_and_described(client: Client, engine: FakeEngine) -> None:
    image = await engine.add_image("bb", config={"Labels": {"a": "b"}, "Hostname": "x"})
    await engine.add_image("some.host:5000/path/app:v2", created="2025-01-01T00:00:00.5+01:00")
    rows = (await client.get("/images/json")).json
    assert [row["RepoTags"] for row in rows] == [["some.host:5000/path/app:v2"], ["bb:latest"]]
    assert "VirtualSize" not in rows[0]
    assert "VirtualSize" in (await client.get("/v1.43/images/json")).json[0]
    assert (await client.get("/v1.42/images/json")).json[0]["RepoDigests"] == []
    for name in ("bb", "bb:latest", "docker.io/library/bb", image.id, image.id[7:19]):
        assert (await client.get(f"/images/{name}/json")).json["Id"] == image.id
    assert "Hostname" not in (await client.get("/images/bb/json")).json["Config"]
    assert "Hostname" in (await client.get("/v1.49/images/bb/json")).json["Config"]
    assert (await client.get("/images/nope/json")).message == "No such image: nope:latest"
    assert (await client.get("/images/UP/json")).status == 400
    history = (await client.get("/images/bb/history")).json
    assert (history[0]["Id"], history[0]["Tags"]) == (image.id, ["bb:latest"])


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"reference": ["b*"]}, {"bb:latest"}),
        ({"reference": ["*"]}, {"bb:latest"}),
        ({"reference": ["*/*/*:v?"]}, {"some.host:5000/path/app:v2"}),
        ({"label": ["a=b"]}, {"bb:latest"}),
        ({"label!": ["a"]}, {"some.host:5000/path/app:v2"}),
        ({"dangling": ["true"]}, set()),
        ({"since": ["bb"]}, {"some.host:5000/path/app:v2"}),
        ({"until": ["2024-06-01T00:00:00Z"]}, {"bb:latest"}),
    ],
)
async def test_images_are_filtered(
    client: Client, engine: FakeEngine, filters: dict[str, Any], expected: set[str]
) -> None:
    await engine.add_image("bb", config={"Labels": {"a": "b"}})
    await engine.add_image("some.host:5000/path/app:v2", created="2025-01-01T00:00:00Z")
    answer = await client.get(f"/images/json?filters={quote(json.dumps(filters))}")
    assert {tag for row in answer.json for tag in row["RepoTags"]} == expected


async def test_images_are_tagged_and_untagged(client: Client, engine: FakeEngine) -> None:
    image = await engine.add_image("bb")
    assert (await client.post("/images/bb/tag?repo=other&tag=v1")).status == 201
    assert (await client.get("/images/other:v1/json")).json["Id"] == image.id
    assert (await client.post("/images/bb/tag?repo=UP")).status == 400
    assert (await client.request("DELETE", "/images/other:v1")).json == [{"Untagged": "other:v1"}]
    assert (await client.get("/images/other:v1/json")).status == 404


async def test_scratch_is_not_pulled(client: Client) -> None:
    for query in ("fromImage=scratch", "fromImage=docker.io/library/scratch&tag=1"):
        answer = await client.post(f"/images/create?{query}")
        assert (answer.status, answer.message) == (403, "'scratch' is a reserved name")


async def test_an_archive_is_passed_on_whole(client: Client, engine: FakeEngine) -> None:
    data = bytes(range(256)) * 8192
    answer = await client.post("/images/load?quiet=1", data)
    assert json.loads(answer.body) == {"stream": "Loaded image: bb:latest\n"}
    assert engine.uploaded == data
    assert (await client.get("/images/bb/json")).status == 200
    bad = await client.post("/images/load", b"bad")
    assert (bad.status, json.loads(bad.body)["error"]) == (200, "unexpected EOF")


async def test_a_file_system_is_imported(client: Client, engine: FakeEngine) -> None:
    path = "/images/create?fromSrc=-&repo=imp&tag=1&changes=CMD%20a&changes=ENV%20b=c"
    answer = await client.post(path, b"tar")
    assert json.loads(answer.body)["status"].startswith("sha256:")
    request = engine.asked[-1]
    assert request.reference == "docker.io/library/imp:1"
    assert request.changes == ["CMD a", "ENV b=c"]


async def test_the_predefined_networks_are_there(client: Client, three: object) -> None:
    rows = (await client.get("/networks")).json
    assert [row["Name"] for row in rows] == ["bridge", "host", "none"]
    bridge = (await client.get(f"/networks/{rows[0]['Id'][:12]}")).json
    assert [each["Name"] for each in bridge["Containers"].values()] == ["one"]
    assert (await client.get("/networks/nope")).message == "network nope not found"


@pytest.mark.parametrize(
    ("method", "path", "code", "words"),
    [
        ("GET", "/volumes", 200, ""),
        ("GET", "/plugins", 200, ""),
        ("GET", "/info", 200, ""),
        ("GET", "/version", 200, ""),
        ("GET", "/swarm", 503, "This node is not a swarm manager"),
        ("GET", "/services/x/logs", 503, "This node is not a swarm manager"),
        ("POST", "/swarm/init", 501, "swarm mode is not supported yet"),
        ("POST", "/build?squash=1", 501, "the build option squash"),
        ("POST", "/build?version=2", 400, "BuildKit is not supported by this engine"),
        ("POST", "/build/prune", 200, ""),
        ("GET", "/images/search?term=x&limit=101", 400, "Limit 101 is outside the range"),
        ("POST", "/networks/create", 400, "got EOF while reading request body"),
    ],
)
async def test_every_section_of_the_api_answers(
    client: Client, method: str, path: str, code: int, words: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status == code
    assert words in answer.body.decode()


async def test_info_counts_what_there_is(client: Client, three: object) -> None:
    info = (await client.get("/info")).json
    assert [info[f"Containers{what}"] for what in ("", "Running", "Stopped")] == [3, 1, 2]
    assert (info["Images"], info["Name"], info["NCPU"]) == (1, "host", 2)
    # Graphical clients offer these drivers.
    assert info["Plugins"]["Volume"] == ["local"]
    assert {"bridge", "macvlan", "ipvlan"} <= set(info["Plugins"]["Network"])
    assert info["DriverStatus"][0] == ["Backing Filesystem", "extfs"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (125, "2 minutes"),
        (HOUR - 1, "59 minutes"),
        (HOUR, "About an hour"),
        (HOUR + 29 * MINUTE, "About an hour"),
        (HOUR + 30 * MINUTE, "2 hours"),
        (47 * HOUR, "47 hours"),
        (3 * DAY, "3 days"),
        (20 * DAY, "2 weeks"),
        (100 * DAY, "3 months"),
        (3 * 365 * DAY, "3 years"),
    ],
)
def test_durations_read_as_in_docker(seconds: int, text: str) -> None:
    assert duration(seconds) == text
    assert next_change(seconds) > seconds
    assert duration(next_change(seconds) - 1) in (text, duration(seconds + 60))


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, ZERO_TIME),
        (SECOND, "1970-01-01T00:00:01Z"),
        (SECOND + 120_000_000, "1970-01-01T00:00:01.12Z"),
        (SECOND + 1, "1970-01-01T00:00:01.000000001Z"),
    ],
)
def test_times_are_written_as_go_does(time_ns: int, text: str) -> None:
    assert rfc3339(time_ns) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": State.RUNNING}, "Up 5 seconds"),
        ({"state": State.RUNNING, "health": Health()}, "Up 5 seconds (health: starting)"),
        ({"state": State.PAUSED}, "Up 5 seconds (Paused)"),
        ({"state": State.STOPPING}, "Up 5 seconds"),
        ({"state": State.RESTARTING, "exit_code": 1}, "Restarting (1) 2 seconds ago"),
        ({"state": State.EXITED, "exit_code": 137}, "Exited (137) 2 seconds ago"),
        ({"state": State.STARTING, "finished_ns": 0}, "Created"),
        ({"state": State.DEAD}, "Dead"),
        ({"state": State.REMOVING}, "Removal In Progress"),
    ],
)
def test_the_status_says_since_when(fields: dict[str, Any], text: str) -> None:
    record = ContainerRecord(
        id="a", name="a", node="n", created_ns=1, image="bb", started_ns=10 * SECOND,
        finished_ns=13 * SECOND,
    ).model_copy(update=fields)  # fmt: skip
    found, until = status(record, 15 * SECOND)
    assert found == text
    assert until > 15 * SECOND


@pytest.mark.parametrize("text", ["(a*)*", "a+b+c+d+e+", "(?=a)", r"(a)\1", "x" * 600, "["])
def test_patterns_that_could_run_away_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        compile_pattern(text, "name")


@pytest.mark.parametrize("text", ["^/web$", "a|b", "[a-z+*]+_\\d{1,3}", "(foo|bar)-.*", ""])
def test_ordinary_patterns_are_taken(text: str) -> None:
    assert compile_pattern(text, "name")
