"""Challenges, endpoints, manifests and progress, as values."""

from __future__ import annotations

import pytest

from mooring.kit.errors import NotFound
from mooring.runtime.images.platforms import Platform
from mooring.runtime.images.registry import challenge, endpoints, manifests, progress
from mooring.runtime.images.registry.endpoints import Rules


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Basic realm="a b"', [("basic", {"realm": "a b"})]),
        (
            'Bearer realm="https://a/token",service="a,b",scope="repository:x:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://a/token",
                        "service": "a,b",
                        "scope": "repository:x:pull,push",
                    },
                )
            ],
        ),
        ('Negotiate, Basic realm="x\\"y"', [("negotiate", {}), ("basic", {"realm": 'x"y'})]),
        ("Bearer error=invalid_token", [("bearer", {"error": "invalid_token"})]),
        ("=,=", []),
        ("", []),
    ],
)
def test_a_challenge_is_taken_apart(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    parsed = challenge.challenges([header])
    assert [(each.scheme, each.parameters) for each in parsed] == found


def test_credentials_come_in_two_forms() -> None:
    assert challenge.user_and_password(challenge.Credentials()) is None
    assert challenge.user_and_password(challenge.Credentials(username="a", password="b:c")) == (
        "a",
        "b:c",
    )
    assert challenge.user_and_password(challenge.Credentials(auth="YTpiOmM=")) == ("a", "b:c")
    assert challenge.user_and_password(challenge.Credentials(auth="!")) is None


@pytest.mark.parametrize(
    ("domain", "urls"),
    [
        ("docker.io", ["http://mirror:5000", "https://registry-1.docker.io"]),
        ("quay.example", ["https://quay.example"]),
        ("localhost:5000", ["https://localhost:5000", "http://localhost:5000"]),
        ("[::1]:5000", ["https://[::1]:5000", "http://[::1]:5000"]),
        ("plain.example:80", ["https://plain.example:80", "http://plain.example:80"]),
        ("10.1.2.3", ["https://10.1.2.3", "http://10.1.2.3"]),
        ("10.2.2.3", ["https://10.2.2.3"]),
    ],
)
def test_where_a_registry_is_asked(domain: str, urls: list[str]) -> None:
    rules = Rules(("http://mirror:5000",), ("plain.example:80", "10.1.0.0/16"))
    found = endpoints.endpoints(domain, rules, mirrors=True)
    assert [endpoint.url for endpoint in found] == urls
    assert found[0].mirror == (domain == "docker.io")


def _index(*platforms: str) -> manifests.Index:
    rows = []
    for number, text in enumerate(platforms):
        system, architecture, variant = ([*text.split("/"), ""])[:3]
        platform = {"os": system, "architecture": architecture, "variant": variant}
        rows.append(manifests.Descriptor("", f"sha256:{number}", 1, platform=platform))
    return manifests.Index(b"", "", manifests.OCI_INDEX, tuple(rows))


@pytest.mark.parametrize(
    ("wanted", "offered", "place"),
    [
        (Platform("amd64"), ("linux/arm64/v8", "linux/amd64"), 1),
        (Platform("amd64"), ("linux/amd64/v3", "linux/amd64"), 1),
        (Platform("amd64", "v3"), ("linux/amd64", "linux/amd64/v3", "linux/amd64/v2"), 1),
        (Platform("amd64"), ("windows/amd64", "linux/386"), 1),
        (Platform("arm64"), ("linux/arm/v7", "linux/arm64"), 1),
        (Platform("arm", "v6"), ("linux/arm/v7", "linux/arm/v5", "linux/arm/v6"), 2),
        (Platform("arm"), ("linux/arm/v8", "linux/arm/v6"), 1),
    ],
)
def test_the_entry_that_fits_a_platform_best(
    wanted: Platform, offered: tuple[str, ...], place: int
) -> None:
    assert manifests.choose(_index(*offered), wanted).digest == f"sha256:{place}"


def test_no_entry_for_a_platform_is_said_in_dockers_words() -> None:
    words = "no matching manifest for linux/arm/v6 in the manifest list entries"
    with pytest.raises(NotFound, match=words):
        manifests.choose(_index("linux/amd64", "linux/arm/v7"), Platform("arm", "v6"))


@pytest.mark.parametrize(
    ("current", "total", "text"),
    [
        (32768, 1068665, "[=>" + " " * 49 + "]  32.77kB/1.069MB"),
        (1068665, 1068665, "[" + "=" * 50 + ">]  1.069MB/1.069MB"),
        (2129920, 1984294, "[" + "=" * 50 + ">]   2.13MB"),
        (5, 0, "      5B"),
    ],
)
def test_the_bar_is_dockers(current: int, total: int, text: str) -> None:
    assert progress.bar(current, total) == text
