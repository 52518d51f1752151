"""`make bench`: both engines in one run, a table with ratios and targets, and a JSON file."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from image import busybox_layer

from . import engines
from .measures import ALL

console = Console(width=130)

# dockerd's figure divided by ours (or ours by dockerd's where more is better) has to reach this.
TARGETS = {
    "start to output, none (ms)": 14.0,
    "start to output, bridge (ms)": 12.0,
    "docker run --rm true, bridge (ms)": 5.0,
    "docker run --rm true, none (ms)": 5.0,
    "exec to output (ms)": 6.0,
    "stop, SIGTERM handled (ms)": 6.0,
    "lifecycles/s, none, 16 at a time": 12.0,
    "lifecycles/s, bridge, 16 at a time": 10.0,
    "containers/s, own network, 100 with 16 at once": 5.0,
    "published port: start to first answer (ms)": 6.0,
    "published port, 127.0.0.1 (requests/s)": 1.6,
    "published port, another namespace (requests/s)": 1.0,
    "engine memory per idle container (KiB)": 5.0,
    "engine memory at rest (MiB)": 1.0,
    "/containers/json, 16 clients (requests/s)": 10.0,
    "container to log (MB/s)": 6.0,
    "GET logs (MB/s)": 10.0,
    "attach (MB/s)": 3.0,
    "cp in, 100 MB (MB/s)": 1.0,
    "cp out, 100 MB (MB/s)": 1.0,
    "cp in, 5,000 files (files/s)": 1.0,
    "cp out, 5,000 files (files/s)": 1.0,
    "load, 297 MB, 5 layers (s)": 1 / 0.6,
    "save, 297 MB, 5 layers (s)": 1.0,
    "commit, one file (ms)": 1.0,
    "commit, 64 MB, 100 files (ms)": 1.0,
    "pull, cold (s)": 1.67,
    "push, nothing there yet (s)": 2.0,
    "build, cold (ms)": 3.0,
}
# Absolute ones: at least, at most.
FLOORS = {
    "services killed, 100 containers: alive": 100.0,
    "/_ping, 16 clients (requests/s)": 5000.0,
    "inspect, 16 clients (requests/s)": 5000.0,
    "names (queries/s)": 3000.0,
}
CEILINGS = {
    "/_ping, 1 client (ms)": 0.4,
    "inspect, 1 client (ms)": 0.4,
    "build, cached (ms)": 10.0,
    "names, slowest of 100 at 3000 queries/s (ms)": 5.0,
    "services killed, 100 containers: API back (s)": 1.5,
    "memory that a pull takes at most (MiB)": 150.0,
}


def measure(engine: engines.Engine, names: list[str], scale: int) -> dict[str, float]:
    """Run the measures; one that fails is said and left out."""
    found: dict[str, float] = {}
    for name in names:
        console.print(f"[bold]{engine.name}[/]: {name}")
        try:
            for key, value in ALL[name](engine, scale):
                found[key] = value
                console.print(f"    {key:48} {value:12.2f}", highlight=False)
        except NotImplementedError as exc:
            console.print(f"    left out: {exc}")
        except Exception as exc:
            console.print(f"    [red]failed[/]: {type(exc).__name__}: {exc}")
        engine.wire.close()
        engine.sweep()
    return found


def ratio(key: str, ours: float, theirs: float) -> float:
    """How many times better ours is."""
    more_is_better = "/s)" in key or "/s," in key
    return ours / theirs if more_is_better else theirs / ours


def verdict(key: str, ours: float, times: float | None) -> str:
    """`ok` or `missed` beside the target, empty where there is none."""
    if key in FLOORS:
        return f"{'ok' if ours >= FLOORS[key] else 'missed'} (≥ {FLOORS[key]:.0f})"
    if key in CEILINGS:
        return f"{'ok' if ours <= CEILINGS[key] else 'missed'} (≤ {CEILINGS[key]})"
    if key in TARGETS and times is not None:
        return f"{'ok' if times >= TARGETS[key] else 'missed'} (≥ {TARGETS[key]:.3g} ×)"
    return ""


def table(found: dict[str, dict[str, float]]) -> Table:
    """Both engines, the ratio, and the target."""
    shown = Table("measure", "mooring", "dockerd", "times better", "target")
    ours, theirs = found.get("mooring", {}), found.get("dockerd", {})
    for key, value in ours.items():
        other = theirs.get(key)
        times = ratio(key, value, other) if other and value else None
        shown.add_row(
            key,
            f"{value:.2f}",
            "–" if other is None else f"{other:.2f}",
            "–" if times is None else f"{times:.1f}",
            verdict(key, value, times),
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(ALL), help="measures, separated by commas")
    parser.add_argument("--engines", default="mooring,dockerd")
    parser.add_argument("--quick", action="store_true", help="a third of the runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    names, scale = options.only.split(","), 1 if options.quick else 3
    rootfs = busybox_layer()
    found: dict[str, dict[str, float]] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as folder:
        for name in options.engines.split(","):
            starter = {"mooring": engines.mooring, "dockerd": engines.dockerd}[name]
            with starter(Path(folder) / name) as engine:
                engine.prepare(rootfs)
                found[name] = measure(engine, names, scale)
                versions[name] = engine.version
    console.print(table(found))
    options.out.mkdir(exist_ok=True)
    path = options.out / time.strftime("%Y%m%d-%H%M%S.json")
    about = {"kernel": platform.release(), "versions": versions, "scale": scale, "found": found}
    path.write_text(json.dumps(about, indent=1) + "\n")
    console.print(f"stored in {path}")


if __name__ == "__main__":
    main()
