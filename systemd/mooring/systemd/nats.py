"""`python -m mooring.systemd.nats prepare|run STATE_DIR RUN_DIR`: the nats-server as a unit.

Standard library only, as the whole engine waits for it: the unit says what settings would say.
"""

from __future__ import annotations

import os
import pwd
import sys
from contextlib import suppress
from pathlib import Path

from mooring.kit import nats_server

USER = "mooring-nats"


def main() -> None:
    """prepare, as root: secret, configuration, address. run, as its user: become the server."""
    try:
        match sys.argv[1:]:
            case ["prepare", state_dir, run_dir]:
                prepare(Path(state_dir), Path(run_dir))
            case ["run", state_dir, _]:
                command, environment = nats_server.command(Path(state_dir))
                os.execve(command[0], command, {**os.environ, **environment})
            case _:
                sys.exit("usage: python -m mooring.systemd.nats prepare|run STATE_DIR RUN_DIR")
    except nats_server.NoServerError as exc:
        sys.exit(f"mooring-nats: {exc}")


def prepare(state_dir: Path, run_dir: Path) -> None:
    """Write what the server and its clients read, and give the server its directory."""
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    nats_server.prepare(state_dir, run_dir)
    with suppress(KeyError):
        user = pwd.getpwnam(USER)
        _give(str(state_dir / "nats"), user.pw_uid, user.pw_gid)


def _give(directory: str, uid: int, gid: int) -> None:
    """chown a tree that only root and the server can write to."""
    for folder, folders, names in os.walk(directory):
        for name in [".", *folders, *names]:
            path = os.path.join(folder, name)
            if os.lstat(path).st_uid != uid:
                os.chown(path, uid, gid, follow_symlinks=False)


if __name__ == "__main__":
    main()
