"""mooring-gateway: the Docker Engine API of an engine."""

from __future__ import annotations

from mooring.kit.process import run

from . import app


def main() -> None:
    """Run until SIGTERM."""
    run("gateway", app.main)


if __name__ == "__main__":
    main()
