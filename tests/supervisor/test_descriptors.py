"""The descriptor store of a service."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from mooring.supervisor.store import DescriptorStore


@pytest.fixture
def store() -> Iterator[DescriptorStore]:
    made = DescriptorStore()
    yield made
    made.close()


def test_a_file_is_kept_once_by_one_name(store: DescriptorStore) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        store.add("a", [os.dup(ours.fileno())])
        again = os.dup(ours.fileno())
        store.add("a", [again, os.dup(theirs.fileno())])
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(again)
        store.add("b", [os.dup(ours.fileno())])
        assert [name for name, _ in store.items()] == ["a", "a", "b"]


def test_one_file_may_be_kept_by_any_number_of_names(store: DescriptorStore) -> None:
    """epoll takes one a thousand times, five hundred if it is watched itself."""
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as outer:
        outer.register(store.fileno(), select.EPOLLIN)
        for number in range(1200):
            assert store.add(str(number), [os.dup(ours.fileno())])
        assert len(store) == 1200
        theirs.close()
        store.poll()
        assert 0 < len(store) < 1200


def test_the_two_ends_of_a_pipe_are_two_files(store: DescriptorStore) -> None:
    store.add("pipe", list(os.pipe()))
    reading, writing = os.pipe()
    store.add("other", [reading])
    store.add("other", [writing])
    assert [name for name, _ in store.items()] == ["pipe", "pipe", "other", "other"]
