"""The process `mooring-lifecycle`: any number of replicas, each of which can be killed."""

from __future__ import annotations

from mooring.kit.starting import start

SERVICE = "mooring.lifecycle.serving"


def main() -> None:
    """Run until asked to stop."""
    start("lifecycle", SERVICE)


if __name__ == "__main__":
    main()
