"""A service that does nothing, and dies at once while there is a file `crash` in run_dir."""

import sys

from mooring.kit.config import Settings
from mooring.kit.process import Service, run


async def work(settings: Settings, service: Service) -> None:
    if (settings.run_dir / "crash").exists():
        sys.exit(3)
    await service.ready()
    await service.stop_requested()


def main() -> None:
    run("worker", work)
