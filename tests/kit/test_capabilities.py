"""Capability names, and the set that the options choose."""

from __future__ import annotations

import pytest

from mooring.kit import capabilities
from mooring.kit.errors import InvalidParameter

ALL = capabilities.NAMES


@pytest.mark.parametrize("written", ["net_admin", "NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin"])
def test_a_capability_may_be_written_in_any_case_and_without_its_prefix(written: str) -> None:
    assert capabilities.normalise([written], "CapAdd") == ["CAP_NET_ADMIN"]


def test_an_unknown_capability_is_refused_with_the_options_name() -> None:
    with pytest.raises(
        InvalidParameter, match='invalid CapDrop: unknown capability: "CAP_NONSENSE"'
    ):
        capabilities.normalise(["nonsense"], "CapDrop")


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], set(capabilities.DEFAULT)),
        (["NET_ADMIN"], [], {*capabilities.DEFAULT, "CAP_NET_ADMIN"}),
        ([], ["CHOWN"], set(capabilities.DEFAULT) - {"CAP_CHOWN"}),
        ([], ["ALL"], set()),
        (["CHOWN"], ["ALL"], {"CAP_CHOWN"}),
        (["ALL"], ["CHOWN"], set(ALL) - {"CAP_CHOWN"}),
        (["ALL"], ["ALL"], set(ALL)),
    ],
)
def test_what_is_added_and_dropped(add: list[str], drop: list[str], expected: set[str]) -> None:
    chosen = capabilities.chosen(add, drop, privileged=False, available=ALL)
    assert set(chosen) == expected
    assert len(chosen) == len(expected)


def test_privileged_means_all_that_the_host_has() -> None:
    have = ("CAP_CHOWN", "CAP_SYS_ADMIN")
    assert capabilities.chosen([], ["ALL"], privileged=True, available=have) == have


def test_a_capability_that_the_host_does_not_have_cannot_be_added() -> None:
    have = [name for name in ALL if name != "CAP_SYS_RESOURCE"]
    with pytest.raises(InvalidParameter, match="CAP_SYS_RESOURCE is not available"):
        capabilities.chosen(["sys_resource"], [], privileged=False, available=have)


def test_a_mask_of_the_kernel_has_the_names_of_its_bits() -> None:
    assert capabilities.from_mask(0b100001) == ("CAP_CHOWN", "CAP_KILL")
