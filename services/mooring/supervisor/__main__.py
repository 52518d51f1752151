"""`python -m mooring.supervisor`: run an embedded engine with the settings of the environment."""

from __future__ import annotations

import gc
import resource
import sys

from mooring.kit import faults, log
from mooring.kit.config import ConfigError, Settings, load
from mooring.kit.listening import AddressInUse
from mooring.kit.nats_server import NoServerError

from .leftovers import AlreadyRunning
from .programs import preload
from .supervisor import Supervisor


def main() -> None:
    """Run until stopped; exit status 1 with a reason on stderr if that is not possible."""
    try:
        settings = load()
    except ConfigError as exc:
        sys.exit(f"mooring: {exc}")
    run(settings)


def run(settings: Settings) -> None:
    """Run an embedded engine in this process until it is stopped."""
    log.setup("supervisor", settings.log_level, settings.log_format)
    if settings.faults:
        faults.enable(str(settings.run_dir / "faults"))
    # The descriptors that services store here may be many.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    preload()
    # Children share this memory as long as nobody writes to it, and the collector writes to all.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        Supervisor(settings).run()
    except (AlreadyRunning, AddressInUse, NoServerError, OSError) as exc:
        sys.exit(f"mooring: {exc}")


if __name__ == "__main__":
    main()
