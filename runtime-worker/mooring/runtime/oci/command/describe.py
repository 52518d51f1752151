"""spec and features: what a configuration may look like, and what this runtime can do."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from mooring.runtime.oci import capabilities, mountspec, namespaces, seccomp, template
from mooring.runtime.oci.errors import OciError

from .store import VERSION

_KEPT = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")


def default_spec() -> dict[str, Any]:
    """A configuration to begin with: a shell in a container of its own."""
    safe = ["nosuid", "noexec", "nodev"]
    sysfs = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]}
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {name: list(_KEPT) for name in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "mooring",
        "mounts": [
            template.PROC,
            template.DEV,
            template.DEVPTS,
            template.SHM,
            template.MQUEUE,
            sysfs,
            template.CGROUP,
        ],
        "linux": {
            "resources": {"devices": template.DEVICE_RULES},
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": [*sorted(template.MASKED_IN_PROC), "/sys/firmware"],
            "readonlyPaths": sorted(template.READONLY_IN_PROC),
        },
    }


def write_spec(options: Namespace) -> int:
    """Write config.json into the bundle; never over one that is there."""
    path = Path(options.bundle) / "config.json"
    if path.exists():
        raise OciError(f"{path} exists already: remove it first")
    path.write_text(json.dumps(default_spec(), indent=4) + "\n")
    return 0


def features(_: Namespace) -> int:
    """Print what is supported, in the form of the OCI specification."""
    options = {*mountspec.ATTRIBUTES, *mountspec.PROPAGATION, "bind", "rbind", "tmpcopyup"}
    options |= {f"r{name}" for name in (*mountspec.ATTRIBUTES, *mountspec.PROPAGATION)}
    print(
        json.dumps(
            {
                "ociVersionMin": "1.0.0",
                "ociVersionMax": VERSION,
                "hooks": [
                    "prestart",
                    "createRuntime",
                    "createContainer",
                    "startContainer",
                    "poststart",
                    "poststop",
                ],
                "mountOptions": sorted(options),
                "linux": {
                    "namespaces": sorted(set(namespaces.FLAGS) - {"user"}),
                    "capabilities": [f"CAP_{name}" for name in capabilities.NAMES],
                    "cgroup": {"v1": True, "v2": True, "systemd": False, "rdma": True},
                    "seccomp": {
                        "enabled": True,
                        "supportedFlags": list(seccomp.FLAGS),
                    },
                    "apparmor": {"enabled": True},
                    "selinux": {"enabled": True},
                    "intelRdt": {"enabled": False},
                    "mountExtensions": {"idmap": {"enabled": False}},
                },
            },
            indent=2,
        )
    )
    return 0
