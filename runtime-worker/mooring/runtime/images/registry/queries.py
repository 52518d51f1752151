"""Questions to a registry: search, what is under a reference, whether credentials are good."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit

from mooring.kit import references
from mooring.kit.errors import EngineError, Unauthorized

from . import manifests
from .challenge import Credentials, basic, challenges, user_and_password
from .client import Http, Repository, connect, read_all, retried, token
from .endpoints import HUB, Endpoint, endpoints
from .manifests import Index
from .pull import fetch_manifest
from .words import ConnectionFault, RegistryError, transfer_error

_INDEX = "https://index.docker.io"
_SEARCH_BODY = 16 << 20
_LOGIN_HOSTS = ("", "docker.io", "index.docker.io", "registry-1.docker.io")


async def search(http: Http, args: dict[str, Any]) -> dict[str, Any]:
    """A SearchRegistry (as JSON): the index of a registry of old, which Docker Hub still has."""
    host, slash, rest = args["term"].partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        candidates = await asyncio.to_thread(endpoints, host, http.rules, mirrors=False)
        term = rest
    else:
        candidates, term = [Endpoint(_INDEX, references.DEFAULT_DOMAIN)], args["term"]
    given = user_and_password(Credentials.parse(args["auth"]))
    query = urlencode({"q": term, "n": args["limit"]})
    failure: Exception | None = None
    for endpoint in candidates:
        headers = {"Authorization": basic(*given)} if given else {}
        url = f"{endpoint.url}/v1/search?{query}"
        try:
            async with http.send("GET", url, endpoint, headers) as answer:
                if answer.status != 200:
                    raise EngineError(f"Unexpected status code {answer.status}")
                return _results(await read_all(answer, _SEARCH_BODY, "the search's answer"))
        except ConnectionFault as exc:
            failure = exc
    raise EngineError(str(failure))


def _results(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)["results"] or []
        names = ("name", "description", "star_count", "is_official", "is_automated")
        rows = [{name: row[name] for name in names if row.get(name) is not None} for row in found]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise EngineError(f"the registry sent no search results: {exc}") from exc
    return {"results": rows}


async def inspect(http: Http, args: dict[str, Any]) -> dict[str, Any]:
    """An InspectDistribution (as JSON)."""
    reference = references.parse(args["reference"])
    auth = Credentials.parse(args["auth"])
    repository = (await connect(http, reference, auth, "pull"))[-1]
    found = await fetch_manifest(
        repository, reference.digest or reference.tag, reference.familiar()
    )
    descriptor = {"mediaType": found.media_type, "digest": found.digest, "size": len(found.raw)}
    if isinstance(found, Index):
        entries = [entry for entry in found.manifests if not manifests.is_attestation(entry)]
        return {"descriptor": descriptor, "platforms": [entry.platform for entry in entries]}
    async with repository.send("GET", f"blobs/{found.config.digest}") as answer:
        raw = await read_all(answer, manifests.CONFIG_LIMIT, "image config")
    if manifests.digest_of(raw) != found.config.digest:
        raise EngineError(f"image config verification failed for digest {found.config.digest}")
    try:
        config = json.loads(raw)
        platform = {key: config[key] for key in ("architecture", "os", "variant") if key in config}
    except (ValueError, TypeError, RecursionError) as exc:
        raise EngineError(f"invalid image config: {exc}") from exc
    return {"descriptor": descriptor, "platforms": [platform]}


async def check_auth(http: Http, args: dict[str, Any]) -> dict[str, Any]:
    """A CheckAuth (as JSON): ask as that user for nothing in particular."""
    auth = Credentials.parse(args["auth"])
    domain = _login_host(auth.serveraddress)
    if domain in _LOGIN_HOSTS:
        candidates = [Endpoint(HUB, references.DEFAULT_DOMAIN)]
    else:
        candidates = await asyncio.to_thread(endpoints, domain, http.rules, mirrors=False)
    failure: Exception | None = None
    for endpoint in candidates:
        repository = Repository(http, endpoint, "", auth)
        try:
            found: dict[str, Any] = await retried(http, partial(_log_in, http, endpoint, auth))
            return found
        except ConnectionFault as exc:
            failure = exc
        except RegistryError as exc:
            url = f"{repository.endpoint.url}/v2/"
            if exc.status == 401:
                raise Unauthorized(
                    f"login attempt to {url} failed with status: 401 Unauthorized"
                ) from exc
            raise transfer_error(exc) from exc
    raise EngineError(str(failure))


async def _log_in(http: Http, endpoint: Endpoint, auth: Credentials) -> dict[str, Any]:
    url = f"{endpoint.url}/v2/"
    done = {"status": "Login Succeeded", "identity_token": ""}
    async with http.send("GET", url, endpoint, {}) as answer:
        if answer.status == 200:
            return done
        found = challenges(answer.headers.getall("WWW-Authenticate", []))
        if answer.status != 401 or not found:
            raise RegistryError(
                answer.status,
                "",
                f"login attempt to {url} failed with status: {answer.status} {answer.reason}",
            )
    given = user_and_password(auth)
    headers: dict[str, str] = {}
    for challenge in found:
        if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
            got = await token(http, endpoint, challenge, auth, [], offline=True)
            done["identity_token"] = got.refresh
            headers["Authorization"] = f"Bearer {got.token.value}"
            break
        if challenge.scheme == "basic" and given is not None:
            headers["Authorization"] = basic(*given)
            break
    async with http.send("GET", url, endpoint, headers) as answer:
        if answer.status != 200:
            raise RegistryError(answer.status, "UNAUTHORIZED", "authentication required")
    return done


def _login_host(address: str) -> str:
    """`https://host:5000/v1/` and `host:5000` mean the same."""
    return urlsplit(address if "://" in address else f"//{address}").netloc
