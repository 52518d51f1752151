"""`python -m mooring.runtime.build PARENT`: the builder process, a child of the runtime worker.

worker                                 builder
exec, the settings as environment ───▶ connects to the bus, tidies up
stdout ◀─────────────────────────────  "ready", then "busy" and "idle"
stdin closed: no build is wanted ────▶ ends (and with its worker, by whatever death)
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys

import uvloop

from mooring.kit import faults, log
from mooring.kit.bus import Bus
from mooring.kit.config import Settings, load
from mooring.runtime.images.unpack import end_with

from .builder import Builder


def main() -> None:
    """See above."""
    end_with(int(sys.argv[1]))
    settings = load()
    log.setup("builder", settings.log_level, settings.log_format)
    if settings.faults:
        faults.enable(str(settings.run_dir / "faults"))
    os.umask(0o022)
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    async with Bus.connect(settings, "builder") as bus:
        builder = Builder(bus, settings, lambda busy: _tell("busy" if busy else "idle"))
        await builder.serve()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ended.set)
        _tell("ready")
        await ended.wait()
        await builder.finish()


def _tell(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
