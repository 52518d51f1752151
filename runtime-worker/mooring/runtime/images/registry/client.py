"""One registry over HTTP: who asks, where redirects lead, what is tried again."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from mooring.kit import references

from .challenge import Challenge, Credentials, basic, challenges, user_and_password
from .endpoints import Endpoint, Rules, Stamp, endpoints, stamp, tls_context
from .lean import aiohttp
from .words import ConnectionFault, NoCredentials, RegistryError, TransferFault, refusal

_CONNECT = 15.0
"""Seconds for a connection."""
_REDIRECTS = 10
_REDIRECTING = (301, 302, 303, 307, 308)
_ERROR_BODY = 64 << 10
_TOKEN_BODY = 1 << 20
_TOKEN_LIFE = 60.0
"""Seconds that a token is good for when the server does not say."""
_LONGEST_WAIT = 60.0
_ALERT = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_ALERT_(\w+)")
_AGENT = "docker/27.0.0 mooring/0.1"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often a registry is asked. Seconds."""

    stall: float = 60.0
    attempts: int = 5
    delay: float = 5.0


class Http:
    """The connections of this process, to all registries."""

    def __init__(self, rules: Rules, patience: Patience) -> None:
        self.rules, self.patience = rules, patience
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=patience.stall)
        # Blobs are wanted as they are stored; a registry sets no cookies that we keep.
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=60),
            headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
            trust_env=True,
            read_bufsize=1 << 20,
        )
        self._contexts: dict[Endpoint, tuple[Stamp, ssl.SSLContext]] = {}

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    def context(self, endpoint: Endpoint) -> ssl.SSLContext:
        """The TLS settings for an endpoint; TransferFault for unusable certificates."""
        now = stamp(endpoint, self.rules.certs_dir)
        known = self._contexts.get(endpoint)
        if known is None or known[0] != now:
            known = self._contexts[endpoint] = now, tls_context(endpoint, self.rules.certs_dir)
        return known[1]

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        data: Any = None,
        *,
        follow: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request and the answer it leads to; ConnectionFault.

        Another host than the one that was asked is never told who asks.
        """
        first = urlsplit(url)
        headers = dict(headers)
        for _ in range(_REDIRECTS):
            try:
                response = await self._session.request(
                    method,
                    url,
                    headers=headers,
                    data=data() if callable(data) else data,
                    allow_redirects=False,
                    ssl=self.context(endpoint) if url.startswith("https:") else True,
                )
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                raise connection_fault(method, url, exc) from exc
            try:
                location = response.headers.get("Location", "")
                if not (follow and response.status in _REDIRECTING and location):
                    yield response
                    return
            finally:
                response.release()
            url = urljoin(url, location)
            target = urlsplit(url)
            if target.scheme not in ("http", "https") or not target.hostname:
                raise TransferFault(f"the registry redirects to {url[:200]!r}")
            if (target.scheme, target.netloc) != (first.scheme, first.netloc):
                headers.pop("Authorization", None)
        raise TransferFault(f'{method.capitalize()} "{url}": stopped after {_REDIRECTS} redirects')


def connection_fault(method: str, url: str, exc: BaseException) -> ConnectionFault:
    """What kept us from an answer, as Docker says it."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    where = f'{method.capitalize()} "{url}"'
    if alert := _ALERT.search(str(exc)):
        return ConnectionFault(f"{where}: remote error: tls: {alert[1].lower().replace('_', ' ')}")
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            return ConnectionFault(f"{where}: x509: {_certificate_words(exc.certificate_error)}")
        case aiohttp.ClientConnectorDNSError():
            return ConnectionFault(f"{where}: dial tcp: lookup {host}: no such host")
        case aiohttp.ClientConnectorSSLError() if "WRONG_VERSION" in str(exc):
            return ConnectionFault(f"{where}: http: server gave HTTP response to HTTPS client")
        case aiohttp.ClientSSLError():
            return ConnectionFault(f"{where}: tls: {exc}")
        case aiohttp.ClientConnectorError():
            reason = exc.os_error.strerror or str(exc.os_error)
            if isinstance(exc.os_error, ConnectionRefusedError):
                reason = "connection refused"
            elif isinstance(exc.os_error, socket.gaierror):
                return ConnectionFault(f"{where}: dial tcp: lookup {host}: no such host")
            return ConnectionFault(f"{where}: dial tcp {host}:{port}: connect: {reason.lower()}")
        case aiohttp.ConnectionTimeoutError():
            return ConnectionFault(f"{where}: dial tcp {host}:{port}: i/o timeout")
        case TimeoutError():
            return ConnectionFault(f"{where}: net/http: timeout awaiting response")
    return ConnectionFault(f"{where}: {str(exc) or type(exc).__name__}")


def _certificate_words(error: BaseException) -> str:
    text = getattr(error, "verify_message", "") or str(error)
    if "self-signed" in text or "self signed" in text or "issuer" in text:
        return "certificate signed by unknown authority"
    return text


@dataclass(slots=True)
class _Token:
    value: str
    until: float


@dataclass(slots=True)
class Repository:
    """A repository at one endpoint, asked in somebody's name for some actions."""

    http: Http
    endpoint: Endpoint
    path: str
    auth: Credentials
    actions: str = "pull"
    sources: tuple[str, ...] = ()
    """Repositories that blobs may be mounted from."""
    _challenges: list[Challenge] = field(default_factory=list)
    _token: _Token | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ping(self) -> None:
        """Whether a registry is there, and how it wants to know who asks; ConnectionFault."""
        async with self.http.send("GET", f"{self.endpoint.url}/v2/", self.endpoint, {}) as answer:
            self._challenges = challenges(answer.headers.getall("WWW-Authenticate", []))
            if answer.status >= 500 or answer.status in (400, 429):
                raise await _refused(answer)

    @asynccontextmanager
    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        follow: bool = True,
        accept: tuple[int, ...] = (),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that is no refusal; path is one below the repository, or a URL.

        RegistryError, NoCredentials, ConnectionFault. data: bytes, or what makes a body.
        """
        url = path if "://" in path else f"{self.endpoint.url}/v2/{self.path}/{path}"
        for last in (False, True):
            given = dict(headers or {})
            if self._is_ours(url) and (value := await self._authorization(method, url)):
                given["Authorization"] = value
            async with self.http.send(
                method, url, self.endpoint, given, data, follow=follow
            ) as answer:
                if answer.status < 400 or answer.status in accept:
                    yield answer
                    return
                if answer.status == 401 and self._is_ours(str(answer.url)) and not last:
                    found = challenges(answer.headers.getall("WWW-Authenticate", []))
                    self._challenges = found or self._challenges
                    used, self._token = self._token, None
                    if used is None and "Authorization" in given:
                        raise await _refused(answer)
                    continue
                raise await _refused(answer)
        raise AssertionError  # The second turn always ends above.

    def _is_ours(self, url: str) -> bool:
        ours, other = urlsplit(self.endpoint.url), urlsplit(url)
        return (ours.scheme, ours.netloc) == (other.scheme, other.netloc)

    async def _authorization(self, method: str, url: str) -> str:
        if self.auth.registrytoken:
            return f"Bearer {self.auth.registrytoken}"
        for challenge in self._challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                return f"Bearer {await self._bearer(challenge)}"
            if challenge.scheme == "basic":
                if self.endpoint.mirror or (given := user_and_password(self.auth)) is None:
                    raise NoCredentials(f'{method.capitalize()} "{url}": no basic auth credentials')
                return basic(*given)
        return ""

    async def _bearer(self, challenge: Challenge) -> str:
        async with self._lock:
            if self._token is None or self._token.until < time.monotonic():
                scopes = [f"repository:{self.path}:{self.actions}"] if self.path else []
                scopes += [f"repository:{source}:pull" for source in self.sources]
                auth = Credentials() if self.endpoint.mirror else self.auth
                answer = await token(self.http, self.endpoint, challenge, auth, scopes)
                self._token = answer.token
            return self._token.value


class TokenAnswer:
    """What a token server gave."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.refresh = str(value.get("refresh_token") or "")
        text = str(value.get("token") or value.get("access_token") or "")
        if not text:
            raise TransferFault("authorization server did not include a token in the response")
        life = value.get("expires_in")
        seconds = max(float(life), _TOKEN_LIFE) if isinstance(life, int | float) else _TOKEN_LIFE
        # A little early: it has to be good when it arrives.
        self.token = _Token(text, time.monotonic() + seconds * 0.9)


async def token(
    http: Http,
    endpoint: Endpoint,
    challenge: Challenge,
    auth: Credentials,
    scopes: list[str],
    *,
    offline: bool = False,
) -> TokenAnswer:
    """Ask a challenge's realm for a token; RegistryError, ConnectionFault, TransferFault."""
    realm = challenge.parameters["realm"]
    if urlsplit(realm).scheme not in ("http", "https"):
        raise TransferFault(f"the registry names {realm[:200]!r} as its token server")
    service = challenge.parameters.get("service", "")
    headers: dict[str, str] = {}
    given = user_and_password(auth)
    if auth.identitytoken:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": auth.identitytoken,
            "service": service,
            "client_id": "docker",
            "scope": " ".join(scopes),
        }
        method, url = "POST", realm
        data: bytes | None = urlencode(form).encode()
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    else:
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        if given is not None:
            headers["Authorization"] = basic(*given)
            query.append(("account", given[0]))
            if offline:
                query += [("offline_token", "true"), ("client_id", "docker")]
        method, data = "GET", None
        url = realm + ("&" if urlsplit(realm).query else "?") + urlencode(query) if query else realm
    async with http.send(method, url, endpoint, headers, data) as answer:
        if answer.status >= 400:
            raise await _refused(answer)
        try:
            value = json.loads(await read_all(answer, _TOKEN_BODY, "the token server's answer"))
        except (ValueError, RecursionError) as exc:
            raise TransferFault(f"unable to decode token response: {exc}") from exc
    if not isinstance(value, dict):
        raise TransferFault("unable to decode token response: no JSON object")
    return TokenAnswer(value)


async def read_all(answer: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """A body of at most limit bytes; TransferFault, ConnectionFault."""
    parts: list[bytes] = []
    size = 0
    try:
        async for piece in answer.content.iter_any():
            size += len(piece)
            if size > limit:
                raise TransferFault(f"{what} is larger than {limit >> 20} MiB")
            parts.append(piece)
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise connection_fault(answer.method, str(answer.url), exc) from exc
    return b"".join(parts)


async def _refused(answer: aiohttp.ClientResponse) -> RegistryError:
    try:
        body = await answer.content.read(_ERROR_BODY)
    except (aiohttp.ClientError, OSError, TimeoutError):
        body = b""
    found = challenges(answer.headers.getall("WWW-Authenticate", []))
    error = refusal(answer.status, answer.reason or "", body, found)
    error.wait = _retry_after(answer.headers.get("Retry-After", ""))
    return error


def _retry_after(text: str) -> float:
    """Seconds to wait; a date counts from now; 0 if it does not say."""
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT)
    if text:
        from email.utils import parsedate_to_datetime

        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
        return min(max(seconds, 0.0), _LONGEST_WAIT)
    return 0.0


def is_transient(exc: Exception) -> bool:
    """Whether another attempt may end differently."""
    if isinstance(exc, ConnectionFault):
        return True
    return isinstance(exc, RegistryError) and (exc.status == 429 or exc.status >= 500)


async def connect(
    http: Http, name: references.Reference, auth: Credentials, actions: str,
    sources: tuple[str, ...] = (), *, mirrors: bool = False,
) -> list[Repository]:  # fmt: skip
    """The endpoints of a repository that answer, the best first; the last one's error if none."""
    candidates = await asyncio.to_thread(endpoints, name.domain, http.rules, mirrors=mirrors)
    found: list[Repository] = []
    failure: Exception | None = None
    for endpoint in candidates:
        if found and not found[-1].endpoint.mirror:
            break
        repository = Repository(http, endpoint, name.path, auth, actions, sources)
        try:
            await retried(http, repository.ping)
        except (ConnectionFault, RegistryError) as exc:
            # 400 is how a server that wants TLS answers without: what was wrong with TLS is told.
            if failure is None or not (isinstance(exc, RegistryError) and exc.status == 400):
                failure = exc
        else:
            found.append(repository)
    if not found:
        raise failure or ConnectionFault(f"no endpoint for {name.domain}")
    return found


async def retried(http: Http, action: Any) -> Any:
    """What an action comes to, tried again while the server is too busy (429, 5xx)."""
    for attempt in range(1, http.patience.attempts + 1):
        try:
            return await action()
        except RegistryError as exc:
            if not is_transient(exc) or attempt == http.patience.attempts:
                raise
            await asyncio.sleep(exc.wait or http.patience.delay * attempt)
    raise AssertionError
