"""Clients that act: start, stop, restart, rename, connect; policies; addresses, ports and names."""

from __future__ import annotations

import contextlib
import re
import socket
import time
import urllib.request
from typing import Any

from .asking import PATIENCE, Torn, same
from .clients import Client, counted

SERVE = (
    "trap 'echo bye; exit 3' TERM; mkdir -p /tmp/w; echo hello > /tmp/w/index.html; "
    "httpd -p 80 -h /tmp/w; echo up; while :; do sleep 0.05; done"
)


def free_port() -> int:
    """A port that nobody has, now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class Life(Client):
    """One container through a random life. Address, port and alias are the same for each one
    after the other, so what is not free again stops the next.

    What was asked twice, because the answer to the first was lost, may have been done twice where
    Docker's API knows no better (restart); its log and its events agree all the same.
    """

    kind = "life"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.port = free_port()
        self.address = f"{self.context.prefix}{50 + self.number}"
        self.alias = f"alias-{self.number}"
        self.called = ""
        self.lines: list[str] = []
        """What it must have printed."""
        self.acts: list[str] = []
        """What must have been told, as regular expressions."""
        self.codes: list[int] | None = []
        """None when nobody knows how often it was restarted."""

    def one(self, name: str) -> None:
        network = self.context.network
        id_ = self.create(
            name,
            SERVE,
            ExposedPorts={"80/tcp": {}},
            HostConfig={
                "NetworkMode": network,
                "PortBindings": {"80/tcp": [{"HostPort": str(self.port)}]},
            },
            NetworkingConfig={
                "EndpointsConfig": {
                    network: {"IPAMConfig": {"IPv4Address": self.address}, "Aliases": [self.alias]}
                }
            },
        )
        self.called, self.lines, self.acts, self.codes = name, [], ["create "], []
        self.up(name)
        steps = (self.again, self.killed, self.restarted, self.paused, self.renamed, self.joined)
        for _ in range(self.chance.randint(2, 6)):
            self.chance.choice((*steps, self.reached))(name)
        self.down(name)
        self.remove(self.called, id_, "".join(self.acts) + "destroy ", self.codes or [])
        self.asker.calm(f"{self.alias} is free", lambda: not self.resolve(self.alias))

    def up(self, name: str) -> None:
        """Start it, wait for its first line."""
        self.begin(self.called)
        self.lines.append("up\n")
        self.acts.append("start ")
        self.printed()

    def printed(self) -> None:
        """Wait until it has printed what it must, and no more."""
        wanted = "".join(self.lines).encode()
        called = self.called
        self.asker.calm(f"{called} prints", lambda: len(self.log(called)[0]) >= len(wanted))
        same(self.log(called)[0], wanted, f"the log of {called}")

    def down(self, name: str) -> None:
        """Stop it."""
        self.stop(self.called)
        self.exited(self.called, 3)
        self.down_with(3, "bye\n", "die (stop )?")

    def down_with(self, code: int, line: str, acts: str) -> None:
        """It is down, as it should be."""
        self.lines.append(line)
        self.acts.append(acts)
        self.code(code)
        self.printed()

    def code(self, code: int) -> None:
        """It has died with this."""
        if self.codes is not None:
            self.codes.append(code)

    def again(self, name: str) -> None:
        self.down(name)
        self.up(name)

    def killed(self, name: str) -> None:
        self.asker.ask("POST", f"/containers/{self.called}/kill", [204], again=[409])
        self.exited(self.called, 137)
        self.down_with(137, "", "die ")
        self.up(name)

    def restarted(self, name: str) -> None:
        path = f"/containers/{self.called}/restart?t=60"
        _, broken = self.asker.ask("POST", path, [204])
        once = "die (stop )?start (restart )?"
        if not broken:
            self.lines.append("bye\nup\n")
            self.acts.append(once)
            self.code(3)
            self.printed()
            return
        # Done as often as it was asked, at most; what counts then is that all is in order.
        self.acts.append(f"({once})+")
        self.codes = None
        self.settled()

    def settled(self) -> None:
        """After a restart that may go on behind our back: until it has been up for a while."""
        before, since = self.inspect(self.called)["State"]["StartedAt"], time.monotonic()
        while time.monotonic() - since < 5:
            now = self.inspect(self.called)["State"]["StartedAt"]
            if now != before:
                before, since = now, time.monotonic()
            time.sleep(0.2)
        said = self.log(self.called)[0].decode().removeprefix("".join(self.lines))
        # One that was started in between may have been asked to end before it said a word.
        if not re.fullmatch("bye\n((up\n)?bye\n)*up\n", said):
            raise Torn(f"restarted, and said {said!r} meanwhile")
        self.lines.append(said)
        self.printed()

    def paused(self, name: str) -> None:
        self.asker.ask("POST", f"/containers/{self.called}/pause", [204], again=[409])
        if not self.inspect(self.called)["State"]["Paused"]:
            raise Torn("paused, and it is not")
        self.asker.ask("POST", f"/containers/{self.called}/unpause", [204], again=[409, 500])
        if self.inspect(self.called)["State"]["Status"] != "running":
            raise Torn("not running after unpause")
        self.acts.append("pause unpause ")

    def renamed(self, name: str) -> None:
        new = f"{name}-b" if self.called == name else name
        path = f"/containers/{self.called}/rename?name={new}"
        _, broken = self.asker.ask("POST", path, [204], again=[404, 400, 409])
        old, self.called = self.called, new
        self.acts.append("rename ")
        self.asker.ask("GET", f"/containers/{old}/json", [404])
        if broken:
            # Whoever was to tell its networks may have been killed: they learn it in a moment.
            self.asker.calm(f"{new} has an address", lambda: self.resolve(new))
        elif not self.resolve(new):
            raise Torn(f"{new} has no address")

    def joined(self, name: str) -> None:
        """A network of its own, for a moment."""
        network = f"{name}-net"
        body = {"Name": network, "CheckDuplicate": True}
        self.asker.ask("POST", "/networks/create", [201], body, again=[409])
        body = {"Container": self.called}
        path = f"/networks/{network}"
        self.asker.ask("POST", f"{path}/connect", [200], body, again=[403, 409])
        if self.interfaces() != 2:
            raise Torn(f"connected, with {self.interfaces()} interfaces")
        self.asker.ask("POST", f"{path}/disconnect", [200], body, again=[403, 404, 409, 500])
        if self.interfaces() != 1:
            raise Torn(f"disconnected, with {self.interfaces()} interfaces")
        self.asker.ask("DELETE", path, [204], again=[404])

    def interfaces(self) -> int:
        return self.exec(self.called, ["ip", "-o", "link"], 0).count(b": eth")

    def reached(self, name: str) -> None:
        """Its port answers on every way, and its names have its address."""
        self.asker.calm("127.0.0.1", lambda: self.fetch("127.0.0.1"))
        self.asker.calm("[::1]", lambda: self.fetch("[::1]"))
        for asked in (self.called, self.alias):
            if not self.resolve(asked):
                raise Torn(f"{asked} has no address")

    def fetch(self, host: str) -> bool:
        with urllib.request.urlopen(f"http://{host}:{self.port}/", timeout=10) as answer:
            same(answer.read(), b"hello\n", "what the port says")
        self.counts["connections"] += 1
        return True

    def resolve(self, name: str) -> bool:
        """Whether the name server knows a name; Torn if it has another address."""
        command = ["sh", "-c", f"nslookup {name} 127.0.0.11 | tail -n +3; exit 0"]
        for _ in range(20):
            out = self.exec(self.context.probe, command, 0).decode()
            if "timed out" not in out and "no servers" not in out:
                break
        else:
            raise Torn(f"the name server does not answer: {out}")
        found = [line.split()[-1] for line in out.splitlines() if line.startswith("Address")]
        self.counts["names"] += 1
        if found not in ([], [self.address]):
            raise Torn(f"{name} is {found}, not {self.address}")
        return bool(found)


class Policy(Client):
    """Restart policies: as often as it says, each run once in the log and in the events."""

    kind = "policy"

    def one(self, name: str) -> None:
        if self.chance.random() < 0.5:
            times = self.chance.randint(1, 4)
            policy = {"Name": "on-failure", "MaximumRetryCount": times}
            id_ = self.create(name, "echo run; exit 5", HostConfig={"RestartPolicy": policy})
            self.begin(name)
            self.exited(name, 5)
            found = self.inspect(name)["RestartCount"]
            if found != times:
                raise Torn(f"restarted {found} times, not {times}")
            runs = times + 1
        else:
            policy = {"Name": "always"}
            id_ = self.create(name, "echo run; exit 5", HostConfig={"RestartPolicy": policy})
            self.begin(name)
            wanted = self.chance.randint(1, 5)
            self.asker.calm(f"{name} runs", lambda: len(self.log(name)[0]) >= 4 * wanted)
            self.stop(name)
            self.exited(name, 5)
            runs = len(self.log(name)[0]) // 4
        same(self.log(name)[0], b"run\n" * runs, "the log of a policy")
        events = f"create (start die ){{{runs}}}(stop )?destroy "
        self.remove(name, id_, events, [5] * runs)


class Relay(Client):
    """One long connection to a published port by way of [::1], which mooring-network relays."""

    kind = "relay"

    def one(self, name: str) -> None:
        port = free_port()
        id_ = self.create(
            name,
            "nc -ll -p 7 -e cat & trap 'exit 2' TERM; while :; do sleep 0.1; done",
            ExposedPorts={"7/tcp": {}},
            HostConfig={"PortBindings": {"7/tcp": [{"HostPort": str(port)}]}},
        )
        self.begin(name)
        sock = self.asker.calm(f"[::1]:{port}", lambda: self.connected(port))
        with sock:
            for _ in range(self.chance.randint(5, 40)):
                self.turn(sock)
        self.counts["connections"] += 1
        self.stop(name)
        self.exited(name, 2)
        self.remove(name, id_, "create start die (stop )?destroy ", [2])
        self.asker.calm(f"port {port} is free again", lambda: self.refused(port))

    def connected(self, port: int) -> socket.socket | None:
        """A connection that somebody answers: what the relay takes may find nobody behind."""
        sock = socket.create_connection(("::1", port), PATIENCE)
        with contextlib.suppress(OSError):
            sock.sendall(b"0\n")
            if sock.recv(2, socket.MSG_WAITALL) == b"0\n":
                return sock
        sock.close()
        return None

    def refused(self, port: int) -> bool:
        """Whether nobody takes connections there."""
        try:
            socket.create_connection(("::1", port), PATIENCE).close()
        except ConnectionRefusedError:
            return True
        return False

    def turn(self, sock: socket.socket) -> None:
        """Some lines there and back."""
        data, found = counted(self.chance.choice((1, 100, 10_000))), b""
        try:
            sock.sendall(data)
            while len(found) < len(data) and (more := sock.recv(1 << 16)):
                found += more
        except OSError as exc:
            raise Torn(f"a relayed connection: {exc!r} after {len(found)} bytes") from None
        self.counts["bytes"] += len(found)
        same(found, data, "a relayed connection")
        self.ended.wait(self.chance.choice((0, 0.05, 0.3)))
