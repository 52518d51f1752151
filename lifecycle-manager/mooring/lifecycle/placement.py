"""Which host a new container goes to."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mooring.kit.errors import Unavailable
from mooring.kit.models.host import NodeRecord
from mooring.kit.models.image import ImageRecord


def choose(nodes: Collection[NodeRecord], image: ImageRecord, load: Mapping[str, int]) -> str:
    """The id of the node that has the image and the fewest containers; Unavailable without one."""
    if not nodes:
        raise Unavailable("no host has joined yet: the runtime worker has not reported itself")
    fitting = [node.id for node in nodes if not image.nodes or node.id in image.nodes]
    if not fitting:
        raise Unavailable(f"no host that is known has the image {image.id}")
    return min(fitting, key=lambda node: (load.get(node, 0), node))
