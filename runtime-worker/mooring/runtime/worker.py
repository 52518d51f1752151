"""The runtime worker put together: what it recovers, what it keeps ready, what it answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Done
from mooring.kit.models.container import HostConfig
from mooring.kit.models.host import HostContainer, HostRestart, HostSize, HostStart, NodeRecord
from mooring.kit.models.update import HostUpdate
from mooring.kit.models.volume import MeasureVolumes, PrepareVolumes, RemoveHostVolume
from mooring.kit.process import Service

from . import ballast, network_service, node, spec
from .archive import service as archives
from .archive.service import Archives
from .build import service as builds
from .bundle import Bundles
from .containers import Containers, Parts
from .handing import Shims
from .images import sending
from .images import service as images
from .images.registry import service as registries
from .images.store import spread
from .joins import Joins
from .launching import Launcher
from .layout import Layout
from .locks import KeyedLocks
from .network.attendant import Attendant
from .network.bridge import Bridge, BridgeSettings
from .network.dns.joining import Joining
from .network.ports.publisher import Publisher
from .oci import cgroups
from .reaper import Reaper
from .rewiring import Rewiring
from .runs import Runs, Stage, live_states
from .sandbox import open_networks
from .seccomp import Seccomp
from .snapshots import Snapshots
from .updating import Updating
from .users import Users
from .volumes.volumes import Volumes

logger = logging.getLogger(__name__)


async def main(settings: Settings, service: Service) -> None:
    """Serve this host until asked to stop; containers go on."""
    os.umask(0o022)
    layout = Layout(settings)
    for directory in layout.directories():
        os.makedirs(directory, mode=0o711, exist_ok=True)
    # Containers come and go: where the last ones were deleted the next ones are slow to make.
    spread(Path(layout.containers))
    cgroups.favor_dynamic_modifications(f"{settings.run_dir}/cgroup-moves")
    runs, locks = Runs(layout.shims), KeyedLocks()
    environment = child_environment(settings)
    launcher = Launcher(environment, settings.shims_cgroup)
    attendant = Attendant(f"{settings.run_dir}/network.sock", layout.network_used)
    networks = open_networks(
        _bridge(settings, layout),
        settings.state_dir / "network",
        settings.instance,
        Publisher(settings.instance, layout.ports, attendant, runs.over),
        Joining(layout.names, attendant, runs.namespace),
        launcher.fork_factory,
        lambda: live_states(runs),
        settings.warm_shims,
    )
    reaper = Reaper(layout, runs, networks, locks, settings.cgroup_root)
    await reaper.recover()
    launcher.start()
    shims = Shims(launcher, settings.warm_shims, _pool_root(settings), runs, reaper)
    shims.refill()
    networks.prepare()
    snapshots, seccomp = Snapshots(settings.state_dir), Seccomp(settings.run_dir)
    volumes = Volumes(layout.volumes, snapshots.lowers, reaper.discard, environment)
    volumes.recover(live_runs(layout, runs))
    reaper.on_over.append(volumes.release)
    try:
        async with (
            ballast.kept(settings),
            Bus.connect(settings, "runtime") as bus,
            _background(reaper),
        ):
            image_service = await images.serve(bus, settings)
            image_service.on_removed.append(snapshots.forget)
            await sending.serve(bus, settings, snapshots)
            registry_service = await registries.serve(bus, settings, image_service)
            build_service = await builds.serve(bus, settings, image_service)
            facts = node.facts()
            # No start has to wait for the default filter to be compiled.
            usual = spec.capability_names(HostConfig(), facts)
            await seccomp.compiled(None, frozenset(usual))
            users = Users()
            bundles = Bundles(layout, facts, snapshots, users, settings.cgroup_root)
            containers = Containers(
                Parts(
                    settings=settings,
                    layout=layout,
                    runs=runs,
                    bundles=bundles,
                    networks=networks,
                    shims=shims,
                    reaper=reaper,
                    joins=Joins(layout, runs),
                    locks=locks,
                    volumes=volumes,
                    seccomp=seccomp.compiled,
                    size=snapshots.size,
                )
            )
            await _serve(bus, settings, containers)
            updating = Updating(runs, locks, facts)
            subject = subjects.runtime(settings.node_id, subjects.RUNTIME_UPDATE)
            await bus.serve(subject, HostUpdate, updating.update)
            rewiring = Rewiring(layout, runs, networks, locks)
            await network_service.serve(bus, settings, networks, rewiring)
            await _serve_volumes(bus, settings, volumes)
            await archives.serve(
                bus,
                settings.node_id,
                Archives(
                    layout,
                    runs,
                    bundles,
                    snapshots,
                    users,
                    volumes,
                    locks,
                    environment,
                    settings.copy_stall_timeout,
                ),
            )
            await service.ready()
            record = node.describe(settings)
            await _announce(bus, record)
            await build_service.recover()
            await service.stop_requested()
            await containers.close()
            await registry_service.close()
            await build_service.close()
            await image_service.close()
    finally:
        await shims.close()
        last = not any_live(runs)
        await networks.close(remove=last)
        launcher.close()
        await reaper.close(last=last)


async def _serve(bus: Bus, settings: Settings, containers: Containers) -> None:
    def subject(verb: str) -> str:
        return subjects.runtime(settings.node_id, verb)

    async def remove(request: HostContainer) -> Done:
        done = await containers.remove(request)
        # Sent together with the answer. An agent that is away looks by itself when it is back.
        told = subjects.agent(settings.node_id, subjects.AGENT_FORGET)
        await bus.publish(told, HostContainer(id=request.id))
        return done

    await bus.serve(subject(subjects.RUNTIME_PREPARE), HostStart, containers.prepare)
    await bus.serve(subject(subjects.RUNTIME_REMOVE), HostContainer, remove)
    await bus.serve(subject(subjects.RUNTIME_RELEASE), HostContainer, containers.release)
    await bus.serve(subject(subjects.RUNTIME_SIZE), HostSize, containers.size)
    await bus.serve(subject(subjects.RUNTIME_START), HostStart, containers.start)
    await bus.serve(subject(subjects.RUNTIME_RESTART), HostRestart, containers.restart)


async def _serve_volumes(bus: Bus, settings: Settings, volumes: Volumes) -> None:
    def subject(verb: str) -> str:
        return subjects.runtime(settings.node_id, verb)

    await bus.serve(subject(subjects.RUNTIME_VOLUME_PREPARE), PrepareVolumes, volumes.prepare)
    await bus.serve(subject(subjects.RUNTIME_VOLUME_REMOVE), RemoveHostVolume, volumes.remove)
    await bus.serve(subject(subjects.RUNTIME_VOLUME_SIZES), MeasureVolumes, volumes.measure)


async def _announce(bus: Bus, record: NodeRecord) -> None:
    for warning in record.warnings:
        logger.warning("%s", warning)
    subject = subjects.fact(record.id, subjects.FACT_NODE)
    await bus.publish_durable(subject, record, msg_id=f"{record.id}.{record.seen_ns}.node")


@contextlib.asynccontextmanager
async def _background(reaper: Reaper) -> AsyncIterator[None]:
    task = asyncio.create_task(reaper.run(), name="reaper")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def child_environment(settings: Settings) -> dict[str, str]:
    """What the launcher and its shims inherit: nothing but the tests' faults."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if settings.faults:
        environment["MOORING_FAULTS"] = str(settings.run_dir / "faults")
    return environment


def live_runs(layout: Layout, runs: Runs) -> list[tuple[str, str]]:
    """Holder and directory of each run that goes on."""
    found = []
    for id_, run in runs:
        known = runs.find(id_, run)
        if known is not None and known.stage is Stage.LIVE:
            found.append((f"{id_}.{run}", layout.run_directory(id_, run)))
    return found


def any_live(runs: Runs) -> bool:
    """Whether a container of this host still runs."""
    for id_, run in runs:
        found = runs.find(id_, run)
        if found is not None and found.stage is Stage.LIVE:
            return True
    return False


def _pool_root(settings: Settings) -> str | None:
    # v2 has no rename of cgroups: there a process is born in the right one.
    return settings.cgroup_root if cgroups.version() == 1 else None


def _bridge(settings: Settings, layout: Layout) -> Bridge:
    return Bridge(
        BridgeSettings(
            bridge=settings.bridge,
            table=settings.instance,
            subnet=settings.bridge_subnet,
            directory=settings.state_dir / "network",
            pool=settings.warm_shims,
        )
    )
