"""What a process does that waits for its container: the program, and what it leaves ready.

The same as init.py and staging.py do in a fork of the interpreter, for `machine`: new namespaces,
a session of its own, /proc, /dev and /sys/fs/cgroup as nearly every container has them.

On cgroup v1 all of it is done ahead, in a cgroup that gets the container's name later (`prepare`).
On v2 a cgroup keeps the name it was made with, and a process that moves into one waits for a grace
period of the kernel, some 10 ms, while nobody can fork. It costs nothing to be born there: so a
parent waits with all that needs no pid namespace (`prepare_parent`), and has its one child when
the container is known (`be_born`).
"""

from __future__ import annotations

import os

from . import devices, template
from .linux import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_INTO_CGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)
from .machine import NAME
from .mountapi import (
    AT_RECURSIVE,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_SLAVE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
)
from .mountspec import Mount, parse
from .program import CHILD, Block, Cell, Field, Program, slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
PREPARED, READY, GO = b"P", b"R", b"G"

# Where the prepared parts are.
PROC, PLAIN_PROC, DEV, SHM, CGROUP = (slot(number) for number in range(5))
A, B, C = (slot(number) for number in range(5, 8))
"""For results that are used at once."""
_FIRST_TREE = 16

_CLONE_PARENT = 0x8000
_CLONE_ARGS, _CLONE_ARGS_CGROUP = 88, 80
"""sizeof(struct clone_args), and the offset of its `cgroup`."""
_SET_ASIDE = (1, 2, 3, 13, 15, 17, 25, 32, 33)
"""Signals that the shim or its interpreter ignores or handles, and libc's own two."""
_SIG_SETMASK = 2
_OPEN_PATH = os.O_PATH | os.O_CLOEXEC


def prepare(cgroups: Sequence[tuple[str, str]]) -> Program:
    """From a process of the host to one that waits for its container.

    cgroups: (name below /sys/fs/cgroup, directory) of its cgroup in each hierarchy of v1.
    """
    program = Program()
    arguments = _clone_args(NAMESPACES | _CLONE_PARENT)
    program.call("clone3", arguments, _CLONE_ARGS, flags=CHILD)
    program.call("setsid")
    _be_apart(program)
    for _, directory in cgroups:
        path = os.fsencode(f"{directory}/tasks")
        program.call("openat", AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, result=A)
        program.call("write", A, b"0", 1)
        program.call("close", A)
    _leave_host_mounts(program)
    for number, (_, directory) in enumerate(cgroups):
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        cell = slot(_FIRST_TREE + number)
        program.call("open_tree", AT_FDCWD, os.fsencode(directory), flags, result=cell)
    _make_proc(program)
    _make_dev(program)
    if cgroups:
        _show_cgroups(program, [name for name, _ in cgroups])
    program.call("close", C)
    program.call("write", 3, PREPARED, 1)
    return program


def prepare_parent() -> Program:
    """From a process of the host to the parent of one container (v2)."""
    program = Program()
    program.call("unshare", NAMESPACES & ~CLONE_NEWPID)
    _be_apart(program)
    _leave_host_mounts(program)
    _make_dev(program)
    program.call("write", 3, PREPARED, 1)
    return program


def be_born(program: Program, directory: str) -> None:
    """From such a parent to the child that goes on; directory: its cgroup, which it shows, too."""
    path = os.fsencode(directory)
    arguments = Block(_clone_args(CLONE_NEWPID | _CLONE_PARENT | CLONE_INTO_CGROUP))
    program.call("openat", AT_FDCWD, path, _OPEN_PATH, result=Field(arguments, _CLONE_ARGS_CGROUP))
    program.call("clone3", arguments, _CLONE_ARGS, flags=CHILD)
    program.call("setsid")
    _make_proc(program)
    program.call("open_tree", AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, result=CGROUP)
    set_attributes(program, CGROUP, parse(template.CGROUP).set)


def enter_cgroup(program: Program, directory: str) -> None:
    """From a process to a sibling of it in another cgroup (v2), which tells who it is."""
    arguments = Block(_clone_args(_CLONE_PARENT | CLONE_INTO_CGROUP))
    field = Field(arguments, _CLONE_ARGS_CGROUP)
    program.call("openat", AT_FDCWD, os.fsencode(directory), _OPEN_PATH, result=field)
    program.call("clone3", arguments, _CLONE_ARGS, flags=CHILD)
    program.call("write", 3, PREPARED, 1)


def _clone_args(flags: int) -> bytes:
    return flags.to_bytes(8, "little").ljust(_CLONE_ARGS, b"\0")


def _be_apart(program: Program) -> None:
    program.call("prctl", PR_SET_DUMPABLE, 0)
    program.call("prctl", PR_SET_NAME, NAME.encode())
    reset_signals(program)
    program.call("umask", 0)
    program.call("close_range", 4, 0xFFFFFFFF, 0)


def _leave_host_mounts(program: Program) -> None:
    program.call("openat", AT_FDCWD, b"/", _OPEN_PATH, result=C)
    set_attributes(program, C, propagation=MS_SLAVE, recursive=True)


def reset_signals(program: Program) -> None:
    """No signal ignored or blocked."""
    for number in _SET_ASIDE:
        program.call("rt_sigaction", number, bytes(32), 0, 8)
    program.call("rt_sigprocmask", _SIG_SETMASK, bytes(8), 0, 8)


def _make_proc(program: Program) -> None:
    attach_new(program, parse(template.PROC), C, "/proc")
    program.call("openat", AT_FDCWD, b"/proc", _OPEN_PATH, result=PROC)
    # Sysctls are written through a procfs in which /proc/sys is not read-only.
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    program.call("open_tree", PROC, b"", flags, result=PLAIN_PROC)
    for path in sorted(template.READONLY_IN_PROC):
        make_readonly(program, C, path)
    for path in sorted(template.MASKED_IN_PROC):
        mask(program, C, path)


def _make_dev(program: Program) -> None:
    attach_new(program, parse(template.DEV), C, "/dev")
    program.call("openat", AT_FDCWD, b"/dev", _OPEN_PATH, result=DEV)
    for name, major, minor in devices.DEFAULT:
        program.call("mknodat", DEV, name.encode(), 0o020666, os.makedev(major, minor))
    for name, target in devices.LINKS:
        program.call("symlinkat", target.encode(), DEV, name.encode())
    if os.path.exists("/proc/kcore"):
        program.call("symlinkat", b"/proc/kcore", DEV, b"core")
    for mount in (parse(template.DEVPTS), parse(template.MQUEUE)):
        program.call("mkdirat", DEV, os.path.basename(mount.destination).encode(), 0o755)
        attach_new(program, mount, DEV, os.path.basename(mount.destination))
    program.call("mkdirat", DEV, b"shm", 0o755)
    make_filesystem(program, parse(template.SHM), SHM)


def _show_cgroups(program: Program, names: Sequence[str]) -> None:
    mount = parse(template.CGROUP)
    root = Mount(mount.destination, "tmpfs", "cgroup")
    root.set = mount.set & ~MOUNT_ATTR_RDONLY
    root.options = [("mode", "755")]
    make_filesystem(program, root, A)
    locate(program, C, mount.destination, B)
    attach(program, A, B)
    program.call("close", B)
    for number, name in enumerate(names):
        tree = slot(_FIRST_TREE + number)
        program.call("mkdirat", A, name.encode(), 0o755)
        program.call("openat", A, name.encode(), _OPEN_PATH, result=B)
        set_attributes(program, tree, mount.set)
        attach(program, tree, B)
        program.call("close", B)
        program.call("close", tree)
        for controller in name.split(",") if "," in name else ():
            program.call("symlinkat", name.encode(), A, controller.encode())
    set_attributes(program, A, MOUNT_ATTR_RDONLY)
    program.call("close", A)
    program.call("openat", AT_FDCWD, mount.destination.encode(), _OPEN_PATH, result=CGROUP)


# --- steps that are made of several calls ---


def make_filesystem(program: Program, mount: Mount, result: Cell) -> None:
    """A new file system as a detached mount; what is to be read-only is not so yet."""
    program.call("fsopen", mount.fstype.encode(), 1, result=result)
    options = list(mount.options)
    if mount.source and mount.fstype not in ("proc", "sysfs"):
        options.insert(0, ("source", mount.source))
    for key, value in options:
        if value is None:
            program.call("fsconfig", result, FSCONFIG_SET_FLAG, key.encode(), 0, 0)
        else:
            text = os.fsencode(value)
            program.call("fsconfig", result, FSCONFIG_SET_STRING, key.encode(), text, 0)
    program.call("fsconfig", result, FSCONFIG_CMD_CREATE, 0, 0, 0)
    attributes = (mount.set | mount.recursive_set) & ~MOUNT_ATTR_RDONLY
    # The descriptor of fsopen stays open; all go at once before the program is executed.
    program.call("fsmount", result, 1, attributes, result=result)


def attach_new(program: Program, mount: Mount, root: Cell, path: str) -> None:
    """A new file system at a path below `root`."""
    make_filesystem(program, mount, A)
    if mount.set & MOUNT_ATTR_RDONLY:
        set_attributes(program, A, MOUNT_ATTR_RDONLY)
    for flag, recursive in mount.propagation:
        set_attributes(program, A, propagation=flag, recursive=recursive)
    locate(program, root, path, B)
    attach(program, A, B)
    program.call("close", A)
    program.call("close", B)


def locate(program: Program, root: Cell, path: str, result: Cell) -> None:
    """What is at a path below `root`; a symbolic link anywhere in it ends the program."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
    how = b"".join(word.to_bytes(8, "little") for word in (_OPEN_PATH, 0, resolve))
    program.call("openat2", root, os.fsencode(path), how, 24, result=result)


def attach(program: Program, tree: Cell, target: Cell) -> None:
    """Put a mount onto a directory or file."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    program.call("move_mount", tree, b"", target, b"", flags)


def set_attributes(
    program: Program,
    tree: Cell,
    set_: int = 0,
    clear: int = 0,
    *,
    propagation: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2)."""
    words = (set_, clear, propagation, 0)
    attributes = b"".join(word.to_bytes(8, "little") for word in words)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    program.call("mount_setattr", tree, b"", flags, attributes, 32)


def make_readonly(program: Program, root: Cell, path: str) -> None:
    """A path and what is mounted below it; nothing where this kernel has none."""
    if not os.path.exists(path):
        return
    locate(program, root, path, B)
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE
    program.call("open_tree", B, b"", flags, result=A)
    set_attributes(program, A, MOUNT_ATTR_RDONLY, recursive=True)
    attach(program, A, B)
    program.call("close", A)
    program.call("close", B)


def mask(program: Program, root: Cell, path: str) -> None:
    """Hide a file of /proc or /sys behind /dev/null, a directory behind an empty one."""
    if not os.path.exists(path):
        return
    locate(program, root, path, B)
    if os.path.isdir(path):
        program.call("fsopen", b"tmpfs", 1, result=A)
        for key, value in ((b"nr_blocks", b"1"), (b"nr_inodes", b"2"), (b"mode", b"755")):
            program.call("fsconfig", A, FSCONFIG_SET_STRING, key, value, 0)
        program.call("fsconfig", A, FSCONFIG_CMD_CREATE, 0, 0, 0)
        hidden = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        program.call("fsmount", A, 1, hidden, result=A)
    else:
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        program.call("open_tree", AT_FDCWD, b"/dev/null", flags, result=A)
    attach(program, A, B)
    program.call("close", A)
    program.call("close", B)
