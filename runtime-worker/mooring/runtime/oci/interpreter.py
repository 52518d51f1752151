"""The interpreter that launcher and shims run in, in a form no container can write to.

A process that joins a container is still this interpreter until it executes, and an image may name
`/proc/self/exe` as the interpreter of a script: its program is then the host's python, which root
in the container could open for writing once it no longer runs (CVE-2019-5736). Executed through
a read-only mount of its own, the file can't be opened for writing from there by anybody.
"""

from __future__ import annotations

import os

from .mountapi import MOUNT_ATTR_RDONLY, clone_tree, set_attributes


def read_only(path: str) -> int:
    """A descriptor of a program in a detached read-only mount: execute /proc/self/fd/<it>."""
    tree = clone_tree(os.path.realpath(path), recursive=False)
    try:
        set_attributes(tree, MOUNT_ATTR_RDONLY)
    except BaseException:
        os.close(tree)
        raise
    return tree
