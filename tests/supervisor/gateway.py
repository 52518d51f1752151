"""A service with a listening socket: answers each connection with its pid and what it has stored.

A connection that sends `keep` is stored; the next life of the service says `again` to it. One that
sends `many` is stored by many names.
"""

import asyncio
import json
import os
import socket

from mooring.kit.config import Settings
from mooring.kit.process import Service, run

MANY = 2000
"""More than waits in a socket for the keeper at a time."""


async def serve(settings: Settings, service: Service) -> None:
    loop = asyncio.get_running_loop()
    stored = service.stored()
    for name, descriptors in stored.items():
        for descriptor in descriptors:
            kept = socket.socket(fileno=descriptor)
            kept.setblocking(False)
            if name == "client-1":
                await loop.sock_sendall(kept, b"again\n")
            service.unstore(name)
            kept.close()
    [listening] = service.listeners()["unix"]
    listening.setblocking(False)

    async def accept() -> None:
        while True:
            client, _ = await loop.sock_accept(listening)
            word = await loop.sock_recv(client, 100)
            if word == b"keep":
                service.store("client-1", client.fileno())
            elif word == b"many":
                for number in range(MANY):
                    service.store(f"many-{number}", client.fileno(), poll=False)
            elif word == b"hang":
                os.kill(os.getpid(), 19)
            answer = {"pid": os.getpid(), "stored": list(stored), "node": settings.node_id}
            await loop.sock_sendall(client, json.dumps(answer).encode() + b"\n")
            if word not in (b"keep", b"many"):
                client.close()

    accepting = asyncio.ensure_future(accept())
    service.status("serving")
    await service.ready()
    await service.stop_requested()
    accepting.cancel()


def main() -> None:
    run("gateway", serve)
