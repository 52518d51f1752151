"""A service that is started on demand: it says its pid to each client, and ends when told so."""

import os
import signal
import socket

from mooring.runtime.network.manager import Manager


def main() -> None:
    manager = Manager()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    [listening] = [fd for name, fd in manager.descriptors if name == "network"]
    stored = [fd for name, fd in manager.descriptors if name == "kept"]
    manager.ready()
    with socket.socket(fileno=listening) as server:
        server.setblocking(True)
        while True:
            client, _ = server.accept()
            with client:
                word = client.recv(100)
                client.send(b"%d %d" % (os.getpid(), len(stored)))
            if word == b"store":
                reading, writing = os.pipe()
                manager.store("kept", [reading, writing])
            if word == b"end":
                return


if __name__ == "__main__":
    main()
