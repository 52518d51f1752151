"""`mooring-shim-agent`: one to a host."""

from __future__ import annotations

from mooring.kit.starting import start

SERVICE = "mooring.shim.agent"


def main() -> None:
    """Run until asked to stop."""
    start("shim-agent", SERVICE)


if __name__ == "__main__":
    main()
