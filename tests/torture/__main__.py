"""`python -m tests.torture`: an engine of its own under torture."""

from __future__ import annotations

import argparse
import sys
import time

from tests.engine.harness import engine

from .torture import torture


def main() -> None:
    """Exit status 1, with what was torn, if anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=2, help="of each kind")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    parser.add_argument("--no-shims", action="store_true", help="kill services only")
    chosen = parser.parse_args()
    with engine() as made:
        report = torture(
            made, chosen.seconds, chosen.clients, chosen.seed, shims=not chosen.no_shims
        )
    print(report)
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
