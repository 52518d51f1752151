"""Who a container's process is: Config.User and GroupAdd, by the container's own files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from os import lstat
from typing import NamedTuple

from mooring.kit.errors import EngineError

from .overlay import Overlay, View
from .spec import User

_MAX_ID = (1 << 31) - 1
_FILE_LIMIT = 8 << 20
_CACHED = 1024
_RANGE = "uids and gids must be in range 0-2147483647"

ReadFile = Callable[[str], bytes | None]
"""A file of the container by its path; None if there is none."""


class _Account(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: frozenset[str]


class Users:
    """Looks users up. As long as a container has not written to /etc, its image's files hold."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[str, str, tuple[str, ...]], User] = OrderedDict()

    def lookup(
        self, overlay: Overlay, image_id: str, user: str, group_add: Sequence[str] = ()
    ) -> User:
        """The ids of `user[:group]` and of the groups; EngineError in Docker's words."""
        key = (image_id, user, tuple(group_add))
        # A fresh container has nothing in its upper directory; a changed one may have
        # exchanged /etc itself, also for a link.
        unchanged = _is_absent(f"{overlay.upper}/etc")
        if unchanged and (known := self._cache.get(key)) is not None:
            return known
        found = lookup(overlay, user, group_add)
        if unchanged:
            self._cache[key] = found
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return found


def lookup(overlay: Overlay, user: str, group_add: Sequence[str] = ()) -> User:
    """The ids of `user[:group]` and of further groups; EngineError in Docker's words."""
    try:
        with View(overlay) as view:
            return identify(lambda path: view.read(path, _FILE_LIMIT), user, group_add)
    except ValueError as exc:
        raise EngineError(f"unable to find user {user}: {exc}") from exc


def identify(read: ReadFile, user: str, group_add: Sequence[str]) -> User:
    """The same for files that are read by `read`."""
    name, _, group = user.partition(":")
    accounts = list(_accounts(read("etc/passwd") or b""))
    account = _account(accounts, name)
    if account is not None:
        uid, gid = account.uid, account.gid
    elif name:
        uid = _number(name, f"unable to find user {name}: no matching entries in passwd file")
        gid = 0
    else:
        uid = gid = 0
    supplementary: list[int] = []
    groups: list[_Group] = []
    if group or account is not None or group_add:
        groups = list(_groups(read("etc/group") or b""))
    if group:
        absent = f"unable to find group {group}: no matching entries in group file"
        gid = _gid(groups, group, absent)
    elif account is not None:
        supplementary = [entry.gid for entry in groups if account.name in entry.members]
    added = [_gid(groups, wanted, f"Unable to find group {wanted}") for wanted in group_add]
    home = next((entry.home for entry in accounts if entry.uid == uid), "") or "/"
    # The primary group is among them: else setgroups(2) would take away its access to what is
    # denied to it but allowed to others.
    return User(uid, gid, tuple(dict.fromkeys((gid, *supplementary, *added))), home)


def _account(accounts: Sequence[_Account], name: str) -> _Account | None:
    """The first entry of that name or number; without a name, of root's number."""
    uid = int(name) if _is_number(name) else -1
    for account in accounts:
        if account.uid == (uid if name else 0) or (name and account.name == name):
            return account
    return None


def _gid(groups: Sequence[_Group], wanted: str, absent: str) -> int:
    gid = int(wanted) if _is_number(wanted) else -1
    for entry in groups:
        if wanted and (entry.name == wanted or entry.gid == gid):
            return entry.gid
    return _number(wanted, absent)


def _number(text: str, absent: str) -> int:
    if not _is_number(text):
        raise EngineError(absent)
    if int(text) > _MAX_ID:
        raise EngineError(_RANGE)
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _rows(data: bytes, columns: int) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        row = line.strip()
        if row and not row.startswith("#"):
            fields = row.split(":")
            if len(fields) >= columns:
                yield fields


def _accounts(data: bytes) -> Iterator[_Account]:
    for row in _rows(data, 4):
        if _is_id(row[2]) and _is_id(row[3]):
            home = row[5] if len(row) > 5 else ""
            yield _Account(row[0], int(row[2]), int(row[3]), home)


def _groups(data: bytes) -> Iterator[_Group]:
    for row in _rows(data, 3):
        if _is_id(row[2]):
            members = row[3].split(",") if len(row) > 3 else ()
            yield _Group(row[0], int(row[2]), frozenset(filter(None, members)))


def _is_id(text: str) -> bool:
    return _is_number(text) and int(text) <= _MAX_ID


def _is_absent(path: str) -> bool:
    try:
        lstat(path)
    except FileNotFoundError:
        return True
    return False
