"""Which handler a path reaches."""

from __future__ import annotations

import pytest

from mooring.gateway.app import all_routes
from mooring.gateway.errors import HttpError
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.head import Head
from mooring.gateway.router import Router
from mooring.kit.config import Settings

ROUTER = Router(all_routes(Gateway(Settings())))


def head(method: str, target: str) -> Head:
    return Head(method, target, {"host": "d"}, True, 0, False, False)


@pytest.mark.parametrize(
    ("method", "target", "handler", "name"),
    [
        ("GET", "/containers/json", "list", ""),
        ("GET", "/v1.24/containers/json?all=1", "list", ""),
        ("GET", "/v1.50/containers/json?size=1", "sized_list", ""),
        ("GET", "/containers/web/json", "inspect", "web"),
        ("GET", "/containers/%2Fweb/json", "inspect", "/web"),
        ("GET", "/containers/json/json", "inspect", "json"),
        ("DELETE", "/containers/web", "remove", "web"),
        ("POST", "/containers/web/attach", "attach", "web"),
        ("GET", "/containers/web/attach/ws", "websocket", "web"),
        ("GET", "/images/host:5000/a/b:tag/json", "inspect", "host:5000/a/b:tag"),
        ("GET", "/images/a%2Fb/json", "inspect", "a/b"),
        ("DELETE", "/images/a/b/c", "remove", "a/b/c"),
        ("POST", "/exec/abc/start", "start", "abc"),
        ("GET", "/networks/", "list", ""),
        ("GET", "/networks/bridge", "inspect", "bridge"),
        ("OPTIONS", "/v9.9/x", "_options", ""),
    ],
)
def test_paths_reach_their_handler(method: str, target: str, handler: str, name: str) -> None:
    call = ROUTER.find(head(method, target))
    assert (call.handler.__name__, call.name) == (handler, name)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/containers"),
        ("GET", "/containers//json"),
        ("PUT", "/containers/json"),
        ("POST", "/containers/web/json"),
        ("GET", "/v1.50"),
        ("GET", "/vx.y/info"),
        ("get", "/info"),
    ],
)
def test_anything_else_is_not_found(method: str, target: str) -> None:
    with pytest.raises(HttpError) as caught:
        ROUTER.find(head(method, target))
    assert (caught.value.status, caught.value.message) == (404, "page not found")


@pytest.mark.parametrize(
    ("version", "words", "plain"),
    [
        ("1.51", "client version 1.51 is too new. Maximum supported API version is 1.50", False),
        ("2.0", "client version 2.0 is too new", False),
        (
            "1.23",
            "client version 1.23 is too old. Minimum supported API version is 1.24, please "
            "upgrade your client to a newer version",
            True,
        ),
    ],
)
def test_versions_out_of_the_window_are_refused(version: str, words: str, plain: bool) -> None:
    with pytest.raises(HttpError) as caught:
        ROUTER.find(head("GET", f"/v{version}/info"))
    assert caught.value.status == 400
    assert words in caught.value.message
    assert caught.value.plain is plain
