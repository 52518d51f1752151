"""Credentials as clients send them."""

from __future__ import annotations

import base64
import json

import pytest

from mooring.gateway.routes.transfers import registry_auth
from mooring.kit.models.registry import RegistryAuth


class _Head:
    def __init__(self, value: str) -> None:
        self.headers = {"x-registry-auth": value} if value else {}


class _Request:
    def __init__(self, value: str) -> None:
        self.head = _Head(value)


def _parse(value: str) -> RegistryAuth:
    return registry_auth(_Request(value))  # type: ignore[arg-type]


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", ["", "="])
def test_both_alphabets_any_padding_any_case_and_null(encode: object, padding: str) -> None:
    raw = json.dumps({"Username": "me", "password": "ü?>~~", "email": None}).encode()
    text = encode(raw).decode().rstrip("=") + padding  # type: ignore[operator]
    assert _parse(text) == RegistryAuth(username="me", password="ü?>~~")


def test_nothing_is_nobody() -> None:
    for text in ("", "e30=", base64.b64encode(b"null").decode()):
        assert _parse(text) == RegistryAuth()


@pytest.mark.parametrize("raw", [b"[1]", b"{", b'{"username": 5}', b"\xff"])
def test_what_is_no_credentials_is_nobody(raw: bytes) -> None:
    assert _parse(base64.b64encode(raw).decode()) == RegistryAuth()


def test_what_is_no_base64_is_nobody() -> None:
    for text in ("!!", "a", "é"):
        assert _parse(text) == RegistryAuth()
