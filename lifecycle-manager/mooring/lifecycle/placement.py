"""Which host a new container goes to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from mooring.kit.errors import Unavailable
from mooring.kit.models.host import NodeRecord
from mooring.kit.models.image import ImageRecord


def choose(
    nodes: Collection[NodeRecord], image: ImageRecord, load: Callable[[], Mapping[str, int]]
) -> str:
    """The id of the node that has the image and the fewest containers; Unavailable without one.

    load: how many containers each node has, by its id.
    """
    if not nodes:
        raise Unavailable("no host has joined yet: the runtime worker has not reported itself")
    fitting = [node.id for node in nodes if not image.nodes or node.id in image.nodes]
    if not fitting:
        raise Unavailable(f"no host that is known has the image {image.id}")
    if len(fitting) == 1:
        return fitting[0]
    containers = load()
    return min(fitting, key=lambda node: (containers.get(node, 0), node))


def any_node(nodes: Collection[NodeRecord]) -> str:
    """Where a volume goes that no container asks for yet: to the host seen last; Unavailable."""
    if not nodes:
        raise Unavailable("no host has joined yet: the runtime worker has not reported itself")
    return max(nodes, key=lambda node: node.seen_ns).id
