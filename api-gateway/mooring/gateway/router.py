"""Which handler answers a path. Names may contain slashes, so the ends of a path decide."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from .errors import HttpError
from .http.connection import Call, Handler, InstantHandler, Kind
from .http.head import Head
from .http.reply import Reply
from .http.request import Request
from .versions import NEWEST, OLDEST, text

_VERSIONED = re.compile(r"/v(\d{1,4})\.(\d{1,4})(/.*)")


class Route(NamedTuple):
    """One row of a table of routes: `GET`, `/containers/{id}/json` and what answers it."""

    method: str
    pattern: str
    kind: Kind
    handler: InstantHandler | Handler
    sized: Handler | None = None
    """Answers instead if the query mentions `size`: then other processes must be asked."""


class Router:
    """A table of routes, looked up by method, first segment and last segments."""

    def __init__(self, routes: list[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._named: dict[tuple[str, str], list[tuple[str, Route]]] = {}
        for route in routes:
            before, brace, after = route.pattern.partition("{")
            if not brace:
                self._exact[route.method, route.pattern] = route
                continue
            suffix = after.partition("}")[2]
            self._named.setdefault((route.method, before), []).append((suffix, route))
        for candidates in self._named.values():
            # `/attach/ws` before `/ws` before nothing at all.
            candidates.sort(key=lambda pair: -len(pair[0]))

    def find(self, head: Head) -> Call:
        """The call that a request makes; HttpError 404, or 400 for a version not served."""
        path, _, query = head.target.partition("?")
        version = NEWEST
        found = _VERSIONED.match(path)
        if found:
            version = int(found[1]), int(found[2])
            path = found[3]
        if head.method == "OPTIONS":
            return Call(Kind.ALWAYS, _options, path, query, version, "")
        if found:
            _check(version)
        if "%" in path:
            path = unquote(path)
        route = self._exact.get((head.method, path))
        if route is not None:
            return _call(route, path, query, version, "")
        base = path[: path.find("/", 1) + 1]
        for suffix, route in self._named.get((head.method, base), ()):
            if path.endswith(suffix):
                name = path[len(base) : len(path) - len(suffix)]
                if name:
                    return _call(route, path, query, version, name)
        raise HttpError(404, "page not found")


def _call(route: Route, path: str, query: str, version: tuple[int, int], name: str) -> Call:
    if route.sized is not None and "size" in query:
        return Call(Kind.STREAM, route.sized, path, query, version, name)
    return Call(route.kind, route.handler, path, query, version, name)


def _check(version: tuple[int, int]) -> None:
    if version > NEWEST:
        raise HttpError(
            400,
            f"client version {text(version)} is too new. "
            f"Maximum supported API version is {text(NEWEST)}",
        )
    if version < OLDEST:
        raise HttpError(
            400,
            f"client version {text(version)} is too old. Minimum supported API version is "
            f"{text(OLDEST)}, please upgrade your client to a newer version",
            plain=True,
        )


def _options(request: Request) -> Reply:
    return Reply(200)
