"""The container's root: its mounts, its devices, what of it is hidden, and the change into it.

Everything here runs in the container's init, in its new mount namespace, before it has become
the container: absolute paths are the host's, and the container's root is a descriptor.
"""

from __future__ import annotations

import os

from . import mountapi, paths
from .errors import OciError, because
from .linux import DEVPTS_SUPER_MAGIC, O_PATH, PROC_SUPER_MAGIC, filesystem_type, pivot_root
from .mountapi import (
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_SLAVE,
    NewFilesystem,
    attach,
    clone_tree,
    set_attributes,
)
from .mountspec import Mount, parse, propagation_of_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OTHER_KIND = (
    "not a directory: Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)
"""Docker's words for a frequent mistake: who mounts a file that is not there gets a directory."""
# What may be mounted over a file in procfs: lxcfs and the like fake these.
_PROC_FILES = {
    f"/proc/{name}"
    for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
        "net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
}  # fmt: skip


def detach_from_host() -> None:
    """What is mounted here from now on is not seen by the host; the reverse still is."""
    root = os.open("/", O_PATH | os.O_CLOEXEC)
    try:
        set_attributes(root, propagation=MS_SLAVE, recursive=True)
    finally:
        os.close(root)


class Root:
    """The root of the container being made: `fd` is the mount that will be its `/`."""

    __slots__ = ("_empty", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._empty = -1

    def attach(self) -> None:
        """Make it part of this mount namespace."""
        # Stacked on the host's root, where no absolute path meets it: it needs no directory, and
        # nothing of the host is hidden while the container is being put together.
        top = os.open("/", O_PATH | os.O_CLOEXEC)
        try:
            attach(self.fd, top)
        except OSError as error:
            raise because("cannot attach the root filesystem", error) from error
        finally:
            os.close(top)

    # --- mounts ---

    def mount(self, mount: Mount, tree: int | None, cgroups: list[tuple[str, int]]) -> None:
        """Carry out one mount; tree is the source of a bind, cgroups what a cgroup mount shows."""
        try:
            if tree is not None:
                self._bind(mount, tree)
            elif mount.fstype == "cgroup":
                self._mount_cgroups(mount, cgroups)
            else:
                self._mount_new(mount)
        except OSError as error:
            what = f"cannot mount {mount.source or mount.fstype!r} on {mount.destination}"
            raise because(what, error) from error

    def _bind(self, mount: Mount, tree: int) -> None:
        directory = paths.is_directory(tree)
        target = paths.make(self.fd, mount.destination, directory=directory)
        self._check_target(mount.destination, target)
        if paths.is_directory(target) != directory:
            raise NotADirectoryError(20, _OTHER_KIND)
        # Without a word on propagation a container neither sees nor makes mounts of the host.
        for flag, recursive in mount.propagation or [(MS_PRIVATE, True)]:
            set_attributes(tree, propagation=flag, recursive=recursive)
        if mount.recursive_set or mount.recursive_clear:
            set_attributes(tree, mount.recursive_set, mount.recursive_clear, recursive=True)
        if mount.set or mount.clear:
            set_attributes(tree, mount.set, mount.clear)
        attach(tree, target)
        os.close(target)
        os.close(tree)

    def _mount_new(self, mount: Mount) -> None:
        as_made = mount.fstype != "tmpfs" or any(key == "mode" for key, _ in mount.options)
        # A place that is there gives a tmpfs its mode; one made for it leaves it to everybody.
        keeps_mode = not as_made and self._is_there(mount.destination)
        target = self._target(mount)
        tree = self._filesystem(mount)
        if mount.fstype == "tmpfs":
            self._populate_tmpfs(mount, target, tree, keeps_mode=keeps_mode)
        # What is read-only is so for the container, not for us.
        if mount.set & MOUNT_ATTR_RDONLY:
            set_attributes(tree, MOUNT_ATTR_RDONLY)
        for flag, recursive in mount.propagation:
            set_attributes(tree, propagation=flag, recursive=recursive)
        attach(tree, target)
        os.close(target)
        os.close(tree)

    def _filesystem(self, mount: Mount) -> int:
        with NewFilesystem(mount.fstype) as filesystem:
            if mount.source and mount.fstype not in ("proc", "sysfs", "cgroup2"):
                filesystem.option("source", mount.source)
            for key, value in mount.options:
                filesystem.option(key, value)
            return filesystem.mount((mount.set | mount.recursive_set) & ~MOUNT_ATTR_RDONLY)

    def take(self, mount: Mount, tree: int) -> None:
        """Put a mount that was made ahead where the configuration wants it."""
        try:
            target = self._target(mount)
            attach(tree, target)
            os.close(target)
            os.close(tree)
        except OSError as error:
            raise because(f"cannot mount {mount.destination}", error) from error

    def _target(self, mount: Mount) -> int:
        if mount.fstype in ("proc", "sysfs"):
            target = self._plain_directory(mount)
        else:
            target = self._directory(mount.destination)
        self._check_target(mount.destination, target)
        return target

    def _plain_directory(self, mount: Mount) -> int:
        """The target of proc or sysfs: never behind a link that an image has put there."""
        try:
            target = paths.locate_without_links(self.fd, mount.destination)
        except FileNotFoundError:
            os.close(self._directory(mount.destination))
            target = paths.locate_without_links(self.fd, mount.destination)
        except OSError as error:
            if error.errno == 40:
                raise OciError(
                    f"{mount.fstype} must be mounted on an ordinary directory, "
                    f"and {mount.destination} is a symbolic link"
                ) from error
            raise
        return target

    def _directory(self, path: str) -> int:
        target = paths.make(self.fd, path, directory=True)
        if not paths.is_directory(target):
            raise NotADirectoryError(20, f"{path} of the container is not a directory")
        return target

    def _check_target(self, destination: str, target: int) -> None:
        """Nothing may cover procfs, through which processes are confined, except a few files."""
        if filesystem_type(target) != PROC_SUPER_MAGIC:
            return
        if os.path.normpath(destination) not in _PROC_FILES | {"/proc"}:
            raise OciError(
                f"{destination} is inside the container's procfs: nothing may be mounted there"
            )

    def _is_there(self, path: str) -> bool:
        found = self._present(path)
        if found >= 0:
            os.close(found)
        return found >= 0

    def _populate_tmpfs(self, mount: Mount, target: int, tree: int, *, keeps_mode: bool) -> None:
        if keeps_mode:
            os.chmod(".", os.fstat(target).st_mode & 0o7777, dir_fd=tree)
        if mount.copy_up:
            from .copyup import copy_tree

            copy_tree(target, tree)

    def _mount_cgroups(self, mount: Mount, cgroups: list[tuple[str, int]]) -> None:
        """v1: a tmpfs with the container's own cgroup of each hierarchy in it; v2: that cgroup."""
        target = self._target(mount)
        if len(cgroups) == 1 and not cgroups[0][0]:
            tree = cgroups[0][1]
            set_attributes(tree, mount.set, mount.clear)
            attach(tree, target)
        else:
            with NewFilesystem("tmpfs") as filesystem:
                filesystem.option("mode", "755")
                filesystem.option("source", "cgroup")
                tree = filesystem.mount(mount.set & ~MOUNT_ATTR_RDONLY)
            attach(tree, target)
            for name, hierarchy in cgroups:
                _put_hierarchy(tree, name, hierarchy, mount.set)
            if mount.set & MOUNT_ATTR_RDONLY:
                set_attributes(tree, MOUNT_ATTR_RDONLY)
        os.close(tree)
        os.close(target)

    # --- what is hidden ---

    def mask(self, path: str) -> None:
        """Hide a file behind /dev/null, a directory behind an empty one; absent is hidden."""
        target = self._present(path)
        if target < 0:
            return
        try:
            if not paths.is_directory(target):
                tree = clone_tree("/dev/null", recursive=False)
            elif self._empty >= 0:
                tree = clone_tree("", recursive=False, directory=self._empty)
            else:
                tree = self._empty = _empty_directory()
            attach(tree, target)
            if tree != self._empty:
                os.close(tree)
        except OSError as error:
            raise because(f"cannot mask {path}", error) from error
        finally:
            os.close(target)

    def make_readonly(self, path: str) -> None:
        """Make a path and what is mounted below it read-only; absent is fine."""
        target = self._present(path)
        if target < 0:
            return
        try:
            tree = clone_tree("", recursive=True, directory=target)
            set_attributes(tree, MOUNT_ATTR_RDONLY, recursive=True)
            attach(tree, target)
            os.close(tree)
        except OSError as error:
            raise because(f"cannot make {path} read-only", error) from error
        finally:
            os.close(target)

    def _present(self, path: str) -> int:
        try:
            return paths.locate(self.fd, path)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            raise because(f"cannot find {path}", error) from error

    # --- the terminal ---

    def open_terminal(self) -> int:
        """A new pseudo-terminal's master, from the container's own devpts."""
        return open_terminal(self.fd)

    def put_console(self, slave: int) -> None:
        """Make /dev/console the container's terminal."""
        try:
            target = paths.make(self.fd, "/dev/console", directory=False)
            tree = clone_tree("", recursive=False, directory=slave)
            attach(tree, target)
            os.close(tree)
            os.close(target)
        except OSError as error:
            raise because("cannot set up /dev/console", error) from error

    # --- the end ---

    def enter(self, propagation: str, *, readonly: bool) -> None:
        """Make it `/` and let go of the host's root."""
        try:
            os.fchdir(self.fd)
            pivot_root(b".", b".")
            # The host's root now lies on top of the container's, and is "." still.
            mountapi.unmount(".", MNT_DETACH)
            os.chdir("/")
            if readonly:
                set_attributes(self.fd, MOUNT_ATTR_RDONLY)
            if propagation:
                recursive = propagation.startswith("r")
                flag = propagation_of_root(propagation)
                set_attributes(self.fd, propagation=flag, recursive=recursive)
        except OSError as error:
            raise because("cannot change into the root filesystem", error) from error


def _empty_directory() -> int:
    with NewFilesystem("tmpfs") as filesystem:
        for key, value in (("nr_blocks", "1"), ("nr_inodes", "2"), ("mode", "755")):
            filesystem.option(key, value)
        attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        return filesystem.mount(attributes)


def _put_hierarchy(root: int, name: str, tree: int, attributes: int) -> None:
    os.mkdir(name, 0o755, dir_fd=root)
    target = os.open(name, O_PATH | os.O_CLOEXEC, dir_fd=root)
    set_attributes(tree, attributes)
    attach(tree, target)
    os.close(target)
    os.close(tree)
    for controller in name.split(",") if "," in name else ():
        os.symlink(name, controller, dir_fd=root)


def open_terminal(root: int) -> int:
    """The master of a new pseudo-terminal from the devpts that is mounted in root."""
    from .linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        master = openat2(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY, resolve)
    except OSError as error:
        raise because("cannot open a terminal in the container's /dev/pts", error) from error
    if filesystem_type(master) != DEVPTS_SUPER_MAGIC:
        os.close(master)
        raise OciError("cannot open a terminal: the container's /dev/pts is not a devpts")
    return master


def all_mounts(spec: dict[str, Any]) -> list[Mount]:
    """Every mount of a configuration, checked."""
    return [parse(mount) for mount in spec.get("mounts") or ()]
