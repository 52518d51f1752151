"""How much is in directories; a helper process. Standard library only."""

from __future__ import annotations

import json
import os

from .mounted import is_mounted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


def main(sock: socket.socket) -> None:
    """Do one job: `names` of directories below `volumes`; answers sizes by name."""
    job = json.loads(sock.recv(256 << 10))
    sizes = {}
    for name in job["names"]:
        path = f"{job['volumes']}/{name}/_data"
        if os.path.isdir(path):
            sizes[name] = -1 if is_mounted(path) else size(path)
    sock.send(json.dumps({"sizes": sizes}).encode())


def size(directory: str) -> int:
    """Bytes of the files below; a file with several links counts once."""
    total = 0
    linked: set[int] = set()
    pending = [directory]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except OSError:
            continue  # A container removes it meanwhile.
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                        continue
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if status.st_nlink > 1:
                    if status.st_ino in linked:
                        continue
                    linked.add(status.st_ino)
                total += status.st_size
    return total
