"""Requests that are sent until the engine has taken them, and what may be answered meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from tests.engine.harness import Answer, Engine, until

T = TypeVar("T")
PATIENCE = 90.0
"""Seconds that a command may need while the engine is killed under it."""


class Torn(Exception):
    """Something was lost, doubled, or out of order; the message says what."""


class Broken(Exception):
    """The engine was killed under a request: it may have been carried out, or not."""


class Asker:
    """Asks one engine. What is not answered, or with 503, is asked again; all else is final."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.counts: Counter[str] = Counter()

    def calm(self, what: str, step: Callable[[], T | None], seconds: float = PATIENCE) -> T:
        """The step's value, as soon as it has a true one: a kill under it is no failure."""
        last: list[str] = []

        def attempt() -> T | None:
            try:
                return step()
            except (Broken, OSError, http.client.HTTPException) as exc:
                last[:] = [repr(exc)[:300]]
            return None

        try:
            found: T = until(what, attempt, seconds)
        except AssertionError as exc:
            raise Torn(f"{exc}: {last}") from None
        return found

    def once(
        self, method: str, path: str, good: Collection[int], body: Any = None, **options: Any
    ) -> Answer:
        """One request; Broken if nobody knows what came of it, Torn if it was refused."""
        self.counts["requests"] += 1
        try:
            answer = self.engine.api(method, path, body, **{"timeout": PATIENCE, **options})
        except (OSError, http.client.HTTPException) as exc:
            self.counts["broken off"] += 1
            raise Broken(f"{method} {path}: {exc!r}") from None
        if answer.status == 503:
            self.counts["broken off"] += 1
            raise Broken(f"{method} {path}: {answer.body!r}")
        if answer.status not in good:
            raise Torn(f"{method} {path}: {answer.status} {answer.body.decode().strip()}")
        return answer

    def ask(
        self,
        method: str,
        path: str,
        good: Collection[int],
        body: Any = None,
        *,
        again: Collection[int] = (),
    ) -> tuple[Answer, bool]:
        """Ask until there is an answer; and whether it was asked more than once.

        again: what may also be said to a request of which one went unanswered before.
        """
        broken = False

        def step() -> Answer:
            nonlocal broken
            try:
                return self.once(method, path, [*good, *(again if broken else ())], body)
            except Broken:
                broken = True
                raise

        return self.calm(f"{method} {path}", step), broken

    def get(self, path: str) -> Any:
        """The JSON of something that is there."""
        return self.ask("GET", path, [200])[0].json

    def open(self, method: str, path: str, status: int, body: Any = None) -> socket.socket:
        """Send a request and read no more than the head of its answer."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /v1.43{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n"
        if payload:
            head += "Content-Type: application/json\r\n"
        if status == 101:
            head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        with contextlib.ExitStack() as undo:
            undo.enter_context(sock)
            try:
                sock.connect(self.engine.socket)
                sock.sendall(head.encode() + b"\r\n" + payload)
                answer = b""
                while not answer.endswith(b"\r\n\r\n"):
                    if not (byte := sock.recv(1)):
                        raise Broken(f"{path}: ended after {answer!r}")
                    answer += byte
            except OSError as exc:
                raise Broken(f"{path}: {exc!r}") from None
            said = int(answer.split(b" ", 2)[1])
            if said == 503:
                raise Broken(answer.decode())
            if said != status:
                raise Torn(f"{method} {path}: {answer.decode()} {sock.recv(4096)!r}")
            undo.pop_all()
        return sock


def rest(sock: socket.socket) -> bytes:
    """All that comes until the end; Torn if none comes."""
    parts = []
    with sock:
        try:
            while data := sock.recv(1 << 16):
                parts.append(data)
        except OSError as exc:
            raise Torn(f"a stream stopped after {sum(map(len, parts))} bytes: {exc!r}") from None
    return b"".join(parts)


def demultiplexed(data: bytes) -> tuple[bytes, bytes]:
    """stdout and stderr of a stream of Docker's frames; Torn if the last one is not whole."""
    parts: dict[int, list[bytes]] = {1: [], 2: []}
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        if data[at] not in parts or data[at + 1 : at + 4] != b"\0\0\0":
            raise Torn(f"no head of a frame at {at}: {data[at : at + 8]!r}")
        parts[data[at]].append(data[at + 8 : at + 8 + size])
        at += 8 + size
    if at != len(data):
        raise Torn(f"the last frame is torn: it ends at {at}, the stream at {len(data)}")
    return b"".join(parts[1]), b"".join(parts[2])


def same(found: bytes, expected: bytes, what: str) -> None:
    """Torn, with the first byte that differs and what is around it."""
    if found == expected:
        return
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(found), len(expected)))
    raise Torn(
        f"{what}: {len(found)} bytes of {len(expected)}, differ at {at}: "
        f"{found[max(0, at - 20) : at + 20]!r}, not {expected[max(0, at - 20) : at + 20]!r}"
    )
