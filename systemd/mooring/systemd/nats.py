"""`python -m mooring.systemd.nats prepare|run`: the embedded nats-server as a unit."""

from __future__ import annotations

import os
import pwd
import sys
from contextlib import suppress

from mooring.kit import nats_server
from mooring.kit.config import ConfigError, Settings, load

USER = "mooring-nats"


def main() -> None:
    """prepare, as root: secret, configuration, address. run, as its user: become the server."""
    try:
        settings = load()
        if sys.argv[1:] == ["prepare"]:
            prepare(settings)
        elif sys.argv[1:] == ["run"]:
            command, environment = nats_server.command(settings.state_dir)
            os.execve(command[0], command, {**os.environ, **environment})
        else:
            sys.exit("usage: python -m mooring.systemd.nats prepare|run")
    except (ConfigError, nats_server.NoServerError) as exc:
        sys.exit(f"mooring-nats: {exc}")


def prepare(settings: Settings) -> None:
    """Write what the server and its clients read, and give the server its directory."""
    settings.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    nats_server.prepare(settings.state_dir, settings.run_dir)
    with suppress(KeyError):
        user = pwd.getpwnam(USER)
        _give(str(settings.state_dir / "nats"), user.pw_uid, user.pw_gid)


def _give(directory: str, uid: int, gid: int) -> None:
    """chown a tree that only root and the server can write to."""
    for folder, folders, names in os.walk(directory):
        for name in [".", *folders, *names]:
            path = os.path.join(folder, name)
            if os.lstat(path).st_uid != uid:
                os.chown(path, uid, gid, follow_symlinks=False)


if __name__ == "__main__":
    main()
