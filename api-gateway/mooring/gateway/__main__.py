"""mooring-gateway: the Docker Engine API of an engine."""

from __future__ import annotations

from mooring.kit.starting import start

SERVICE = "mooring.gateway.app"


def main() -> None:
    """Run until asked to stop."""
    start("gateway", SERVICE)


if __name__ == "__main__":
    main()
