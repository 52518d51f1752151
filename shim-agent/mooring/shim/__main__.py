"""`mooring-shim-agent`: one to a host."""

from __future__ import annotations

from mooring.kit import process

from .agent import main as serve


def main() -> None:
    """Entry point of the process."""
    process.run("shim-agent", serve)


if __name__ == "__main__":
    main()
