"""`mooring-runtime`: the runtime worker of this host."""

from __future__ import annotations

from mooring.kit.starting import start

SERVICE = "mooring.runtime.worker"


def main() -> None:
    """Run until asked to stop."""
    start("runtime", SERVICE)


if __name__ == "__main__":
    main()
