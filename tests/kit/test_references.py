"""Image references and signal names."""

from __future__ import annotations

import pytest

from mooring.kit import references, signals
from mooring.kit.errors import InvalidParameter

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("bb", "docker.io/library/bb:latest", "bb:latest"),
        ("bb:1.2", "docker.io/library/bb:1.2", "bb:1.2"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("docker.io/bb", "docker.io/library/bb:latest", "bb:latest"),
        ("index.docker.io/library/bb", "docker.io/library/bb:latest", "bb:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("a.b:5000/x/y:t", "a.b:5000/x/y:t", "a.b:5000/x/y:t"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        (f"bb@{DIGEST}", f"docker.io/library/bb@{DIGEST}", f"bb@{DIGEST}"),
        (f"bb:1@{DIGEST}", f"docker.io/library/bb@{DIGEST}", f"bb@{DIGEST}"),
    ],
)
def test_a_reference_in_full_and_in_short(text: str, full: str, familiar: str) -> None:
    assert references.normalize(text) == full
    assert references.familiar(full) == familiar
    assert references.normalize(full) == full


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("-x", "invalid reference format"),
        ("x:", "invalid reference format"),
        ("x:" + "t" * 129, "invalid reference format"),
        ("x@sha256:12", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("BB", "invalid reference format: repository name (library/BB) must be lowercase"),
        ("h:80/A", "invalid reference format: repository name (A) must be lowercase"),
        ("a" * 64, "cannot specify 64-byte hexadecimal strings"),
        ("x/" * 127 + "yy", "must not be more than 255 characters"),
    ],
)
def test_what_is_no_reference_is_refused_in_dockers_words(text: str, words: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        references.parse(text)
    assert words in error.value.message


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("sigkill", 9), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("64", 64)],
)
def test_signals_by_name_and_number(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "x", "RTMIN+31", "+9", "-1", "SIG"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid signal: "):
        signals.parse(text)
