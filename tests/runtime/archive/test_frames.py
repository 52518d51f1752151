"""Frames between a helper and a gateway, as far as the two can fail each other."""

from __future__ import annotations

import functools
import os
import socket

import pytest

from mooring.runtime.archive import frames, helper


def test_a_sender_that_falls_silent_or_leaves_is_not_taken_for_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        frames.limit(ours, 0.05)
        read = frames.FramedInput(ours).read
        with theirs:
            theirs.sendall(frames.header(5) + b"ab")
            assert read(10) == b"ab"
            with pytest.raises(frames.Stalled):
                read(10)
            theirs.sendall(b"cde" + frames.header(0)[:2])
            assert read(10) == b"cde"
            with pytest.raises(frames.Stalled):
                read(10)
        with pytest.raises(EOFError):
            read(10)


def test_a_pipe_is_waited_for_as_long_as_it_may_be() -> None:
    ours, theirs = os.pipe()
    read = functools.partial(helper._read_soon, ours, 0.05)
    os.write(theirs, b"abc")
    assert read(10) == b"abc"
    with pytest.raises(frames.Stalled):
        read(10)
    os.close(theirs)
    assert read(10) == b""
    os.close(ours)
