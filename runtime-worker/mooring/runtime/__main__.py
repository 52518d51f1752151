"""`mooring-runtime`: the runtime worker of this host."""

from __future__ import annotations

from mooring.kit import process

from . import worker


def main() -> None:
    """Run until asked to stop."""
    process.run("runtime", worker.main)


if __name__ == "__main__":
    main()
