"""Connecting and disconnecting a run, with files that are real and links that are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooring.kit.config import Settings
from mooring.kit.models.network import Endpoint, HostConnect, HostDisconnect, NetworkState
from mooring.runtime.layout import Layout
from mooring.runtime.locks import KeyedLocks
from mooring.runtime.rewiring import Rewiring
from mooring.runtime.runs import NETWORK, Run, Runs, Stage, read_state

RUN = 1
ID = "c0ffee"


class FakeWires:
    """Changes states and nothing else."""

    async def connect(
        self, request: HostConnect, state: NetworkState, namespace: str
    ) -> NetworkState:
        """One endpoint more."""
        endpoint = Endpoint(network_id="n", endpoint_id="e", ip_address="10.0.0.2")
        points = {**state.endpoints, request.network: endpoint}
        return state.model_copy(update={"endpoints": points})

    async def disconnect(
        self, request: HostDisconnect, state: NetworkState, namespace: str
    ) -> NetworkState:
        """One endpoint less."""
        left = {name: one for name, one in state.endpoints.items() if name != request.network}
        return state.model_copy(update={"endpoints": left})

    def disconnected(self, holder: str, network: str) -> None:
        """The address is free."""

    async def renamed(self, holder: str, state: NetworkState) -> None:
        """It has another name."""


class LiveRuns(Runs):
    """Finds one run, in a directory."""

    def find(self, id_: str, run: int) -> Run | None:
        """It goes on."""
        return Run(id_, run, self._shims, Stage.LIVE, init_pid=os.getpid())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a run that is on no network."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "hostname").write_text("web\n")
    (tmp_path / NETWORK).write_bytes(NetworkState().pack())
    return tmp_path


def rewiring(directory: Path) -> Rewiring:
    """That of a worker that has just started."""
    layout = Layout(Settings(state_dir=directory, run_dir=directory))
    return Rewiring(layout, LiveRuns(str(directory)), FakeWires(), KeyedLocks())


def on(directory: Path) -> set[str]:
    """The networks that the run is on."""
    return set(read_state(str(directory)).endpoints)


async def test_a_change_that_comes_once_more_does_not_undo_the_one_after_it(
    directory: Path,
) -> None:
    """The container had stayed on a network that it was disconnected from, and kept it in use."""
    connect = HostConnect(id=ID, run=RUN, network="net", command="first")
    disconnect = HostDisconnect(id=ID, run=RUN, network="net", command="second")
    again = HostConnect(id=ID, run=RUN, network="net", command="third")
    await rewiring(directory).connect(connect)
    assert on(directory) == {"net"}
    await rewiring(directory).disconnect(disconnect)
    assert (await rewiring(directory).connect(connect)).network.endpoints == {}
    assert on(directory) == set()
    await rewiring(directory).connect(again)
    await rewiring(directory).disconnect(disconnect)
    assert on(directory) == {"net"}
