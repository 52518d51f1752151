"""How the process of a service begins, before anything heavy is imported. Standard library only."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from importlib import import_module

PAUSE = 0.25
"""Seconds between a failure and the end of the process. Who starts it again does so at once, since
clients wait for what was killed; what fails by itself is not to take a processor for that."""


def start(name: str, module: str) -> None:
    """Import a service and run its `main(settings, service)` until it is asked to stop.

    Exit status 1 if it failed, also if it could not be imported.
    """
    # Imports make no garbage to speak of: to look for some takes a tenth of their time.
    # kit.process turns it on again.
    gc.disable()
    try:
        main = import_module(module).main
        import_module("mooring.kit.process").run(name, main)
    except SystemExit as exc:
        if exc.code:
            time.sleep(PAUSE)
        raise
    except Exception:
        traceback.print_exc()
        time.sleep(PAUSE)
        sys.exit(1)
