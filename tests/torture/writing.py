"""Clients that write: stdin of containers and of execs comes back, once and in order."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading

from tests.engine.test_run import Terminal

from .asking import PATIENCE, Broken, Torn, demultiplexed, rest, same
from .clients import Client, counted


def typed(client: Client, sock: socket.socket, data: bytes) -> threading.Thread:
    """A thread that sends the data in pieces of every size, and then its end."""

    def send() -> None:
        at = 0
        # What cannot be sent is missed by whoever reads the echo.
        with contextlib.suppress(OSError):
            while at < len(data):
                size = client.chance.choice((1, 100, 4096, 65536, 300_000))
                sock.sendall(data[at : at + size])
                at += size
                client.ended.wait(client.chance.choice((0, 0, 0.01, 0.1)))
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, name=f"{client.name} types", daemon=True)
    thread.start()
    return thread


def echo(client: Client, sock: socket.socket, data: bytes, tty: bool) -> None:
    """Type the data; what comes back is the data. With a terminal, `ready` comes first."""
    with sock:
        if tty:
            begin = b""
            while not begin.endswith(b"\n"):
                if not (more := sock.recv(100)):
                    raise Torn(f"a terminal ended after {begin!r}")
                begin += more
            same(begin, b"ready\n", "the first of a terminal")
        thread = typed(client, sock, data)
        out = rest(sock)
    thread.join()
    client.counts["bytes"] += len(data)
    same(out if tty else demultiplexed(out)[0], data, "what was typed")


def echoing(data: bytes, tty: bool, code: int) -> str:
    """The script that gives back what is typed; a terminal has no end, but a length."""
    if tty:
        return f"stty raw -echo; echo ready; head -c {len(data)}; exit {code}"
    return f"cat; exit {code}"


class Stdin(Client):
    """A container's stdin, attached before the start over a raw socket."""

    kind = "stdin"

    def one(self, name: str) -> None:
        tty, code = self.chance.random() < 0.4, self.chance.randint(0, 100)
        data = counted(self.chance.choice((10, 1000, 20_000, 20_000 if tty else 200_000)))
        fields = {"OpenStdin": True, "StdinOnce": True, "Tty": tty}
        id_ = self.create(name, echoing(data, tty, code), **fields)
        path = f"/containers/{name}/attach?stream=1&stdin=1&stdout=1&stderr=1"
        sock = self.asker.calm("attach", lambda: self.asker.open("POST", path, 101))
        self.begin(name)
        echo(self, sock, data, tty)
        self.exited(name, code)
        self.remove(name, id_, "create start die destroy ", [code])


class Exec(Client):
    """Execs in one container: by the docker CLI, over raw sockets, with and without a terminal."""

    kind = "exec"
    marks = 0
    """How many were asked for."""
    seen: set[int] = set()
    """Those that were seen to the end."""

    def marked(self, script: str) -> tuple[int, list[str]]:
        """A number for it, and the command that leaves the number behind before the script."""
        self.marks += 1
        return self.marks, ["sh", "-c", f"echo {self.marks} >>/tmp/begun; {script}"]

    def once(self, name: str) -> None:
        """No exec has run twice, and whatever was seen has run."""
        command = ["sh", "-c", "touch /tmp/begun; cat /tmp/begun"]
        found = [int(word) for word in self.exec(name, command, 0).split()]
        twice = [number for number in found if found.count(number) > 1]
        if twice or not self.seen <= set(found):
            raise Torn(f"execs {found} ran; seen {self.seen}, twice {twice}")

    def one(self, name: str) -> None:
        id_ = self.create(name, "trap 'exit 4' TERM; while :; do sleep 0.05; done")
        self.begin(name)
        self.marks, self.seen = 0, set[int]()
        for _ in range(self.chance.randint(1, 4)):
            self.chance.choice((self.by_cli, self.by_socket, self.by_terminal, self.quick))(name)
        self.once(name)
        self.stop(name)
        self.exited(name, 4)
        # Stopped twice (the answer to the first was lost), it is killed and dies once.
        self.remove(name, id_, "create start die (stop )?destroy ", [4])

    def quick(self, name: str) -> None:
        """One that only prints."""
        lines = self.chance.choice((1, 100, 20_000))

        def printed() -> tuple[int, bytes]:
            mark, command = self.marked(f"seq 1 {lines}; exit 9")
            id_, sock = self.open_exec(name, command)
            out, _ = demultiplexed(rest(sock))
            self.exec_over(name, id_, 9)
            return mark, out

        mark, out = self.asker.calm("exec", printed)
        same(out, counted(lines), "exec")
        self.seen.add(mark)

    def by_socket(self, name: str) -> None:
        """A raw socket, at full speed."""
        tty, code = self.chance.random() < 0.4, self.chance.randint(0, 100)
        data = counted(self.chance.choice((10, 1000, 20_000, 20_000 if tty else 200_000)))

        def begun() -> tuple[int, str, socket.socket]:
            mark, command = self.marked(echoing(data, tty, code))
            return mark, *self.open_exec(name, command, AttachStdin=True, Tty=tty)

        mark, id_, sock = self.asker.calm("exec", begun)
        echo(self, sock, data, tty)
        self.exec_over(name, id_, code)
        self.seen.add(mark)

    def by_cli(self, name: str) -> None:
        """`docker exec -i`, a line after the other."""

        def begun() -> subprocess.Popen[bytes]:
            _, command = self.marked("exec cat")
            pipes = {"stdin": subprocess.PIPE, "bufsize": 0}
            client = self.popen("exec", "-i", name, *command, **pipes)
            assert client.stdin is not None and client.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                client.stdin.write(b"1\n")
            if (first := client.stdout.read(1)) == b"1":
                return client
            if first:
                raise Torn(f"typed 1, {first!r} came back")
            _, err, code = self.finished(client)
            self.excused(code or 1, err.decode())
            raise Broken(err.decode())

        last = self.chance.randint(20, 150)
        client = self.asker.calm("docker exec -i", begun)
        limit = threading.Timer(2 * PATIENCE, client.kill)
        limit.start()
        with client:
            assert client.stdin is not None and client.stdout is not None
            found = client.stdout.read(1)
            for n in range(2, last + 1):
                with contextlib.suppress(BrokenPipeError):
                    client.stdin.write(b"%d\n" % n)
                line = b"%d\n" % n
                while line and (got := client.stdout.read(len(line))):
                    found += got
                    line = line[len(got) :]
            limit.cancel()
            out, err, code = self.finished(client)
        same(b"1" + found + out, counted(last), f"docker exec -i ({err!r})")
        if code:
            raise Torn(f"docker exec -i ended with {code}: {err!r}")
        self.counts["execs"] += 1

    def by_terminal(self, name: str) -> None:
        """`docker exec -it` on a pseudo-terminal."""
        for _ in range(50):
            terminal = Terminal(self.engine, "exec", "-it", name, "sh")
            try:
                terminal.expect("# ", 60)
            except AssertionError as exc:
                self.excused(1, str(exc))
                terminal.process.kill()
                terminal.end()
                continue
            break
        else:
            raise Torn("docker exec -it never began")
        try:
            for _ in range(self.chance.randint(3, 20)):
                n = self.chance.randint(1, 10**9)
                terminal.send(f"echo $(({n}+1))\n")
                terminal.expect(str(n + 1), 60)
            terminal.send("exit 8\n")
            terminal.process.wait(60)
        except AssertionError as exc:
            raise Torn(f"docker exec -it: {exc}") from None
        finally:
            terminal.process.kill()
            code = terminal.end()
        self.counts["execs"] += 1
        if code != 8:
            raise Torn(f"docker exec -it ended with {code}, not 8: {terminal.seen[-300:]!r}")
