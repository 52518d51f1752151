"""mooring-gateway: the Docker Engine API of an engine."""

from __future__ import annotations

from mooring.kit.process import run

from .app import main as serve


def main() -> None:
    """Run until SIGTERM."""
    run("gateway", serve)


if __name__ == "__main__":
    main()
