"""`python -m tests.torture`: an engine under torture, one of its own or the installed one."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.engine.harness import Engine, engine

from .installed import KEEPERS, Installed
from .torture import KINDS, torture


def main() -> None:
    """Exit status 1, with what was torn, if anything was."""
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=1, help="of each kind")
    parser.add_argument("--kinds", default="", help=",".join(kind.kind for kind in KINDS))
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    parser.add_argument("--no-shims", action="store_true", help="kill services only")
    parser.add_argument(
        "--installed",
        action="store_true",
        help="the engine of `mooring install`, with whatever runs on it",
    )
    parser.add_argument("--log", type=Path, help="where the engine's log and the kills go")
    chosen = parser.parse_args()
    wanted = chosen.kinds.split(",") if chosen.kinds else [kind.kind for kind in KINDS]
    with installed() if chosen.installed else engine() as made:
        report = torture(
            made,
            chosen.seconds,
            chosen.clients,
            chosen.seed,
            shims=not chosen.no_shims,
            kinds=tuple(kind for kind in KINDS if kind.kind in wanted),
            victims=KEEPERS if chosen.installed else (),
        )
        if chosen.log:
            chosen.log.write_text("\n".join([*report.times, made.logs()]))
        print(report, flush=True)
    sys.exit(1 if report.wrong else 0)


@contextlib.contextmanager
def installed() -> Iterator[Engine]:
    """This machine's own engine."""
    with tempfile.TemporaryDirectory(prefix="mooring-torture-") as folder:
        yield Installed(Path(folder))


if __name__ == "__main__":
    main()
