"""Image references as Docker reads them: `bb` means `docker.io/library/bb:latest`.

Records and messages hold the full form; people see the familiar one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import InvalidParameter

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_OFFICIAL = "library/"
_LEGACY_DOMAIN = "index.docker.io"
_NAME_LIMIT = 255
"""Characters of domain and path together; the distribution specification's."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_HEX_ID = re.compile(r"[a-f0-9]{64}")
_SHA256_LENGTH = 64


class Reference(NamedTuple):
    """An image as the user names it, taken apart. Tag and digest may both be empty."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository in full: domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: `bb`, `user/app`, `host:5000/app`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        return self.path.removeprefix(_OFFICIAL)

    def __str__(self) -> str:
        return self.name + self._suffix()

    def familiar(self) -> str:
        """The shortest form that means the same."""
        return self.familiar_name + self._suffix()

    def tagged(self) -> Reference:
        """What it is kept by: the digest if it has one, else the tag, or `latest`."""
        return self._replace(tag="" if self.digest else self.tag or DEFAULT_TAG)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Take a reference apart and complete domain and `library/`; InvalidParameter if malformed."""
    if _HEX_ID.fullmatch(text):
        raise InvalidParameter(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    rest, at, digest = text.partition("@")
    if at and not _is_digest(digest):
        raise InvalidParameter("invalid reference format")
    slash = rest.rfind("/")
    colon = rest.find(":", slash + 1)
    name, tag = (rest, "") if colon < 0 else (rest[:colon], rest[colon + 1 :])
    if colon >= 0 and not _TAG.fullmatch(tag):
        raise InvalidParameter("invalid reference format")
    domain, path = _split_domain(name)
    if path != path.lower():
        raise InvalidParameter(
            f"invalid reference format: repository name ({path}) must be lowercase"
        )
    if not _PATH.fullmatch(path) or not _DOMAIN.fullmatch(domain):
        raise InvalidParameter("invalid reference format")
    if len(domain) + 1 + len(path) > _NAME_LIMIT:
        raise InvalidParameter(f"repository name must not be more than {_NAME_LIMIT} characters")
    return Reference(domain, path, tag, digest)


def normalize(text: str) -> str:
    """The full form, with `latest` where nothing else is said: what records are keyed by."""
    return str(parse(text).tagged())


def familiar(full: str) -> str:
    """The familiar form of a reference that is already in full form."""
    return parse(full).familiar()


def is_image_id(text: str) -> bool:
    """Whether this can only mean an image's id: `sha256:<64 hex>` or 64 hex digits."""
    return _HEX_ID.fullmatch(text.removeprefix("sha256:")) is not None


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # A first part that can't be a path component by itself is a host.
    is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not is_host:
        domain, path = DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = _OFFICIAL + path
    return domain, path


def _is_digest(text: str) -> bool:
    if not _DIGEST.fullmatch(text):
        return False
    algorithm, _, value = text.partition(":")
    return algorithm != "sha256" or len(value) == _SHA256_LENGTH
