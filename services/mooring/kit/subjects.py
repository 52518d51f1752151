"""Every subject, stream and bucket on the bus, as a name.

Commands flow down (`mooring.lifecycle.*`, then `mooring.host.<node>.*`), facts flow up
(`mooring.facts.<node>.*`). A node id is a NATS token: letters, digits, `-` and `_`.
"""

from __future__ import annotations

# --- commands to the lifecycle managers (queue group LIFECYCLE_GROUP) ---
LIFECYCLE_GROUP = "lifecycle"

CONTAINER_CREATE = "mooring.lifecycle.container.create"
CONTAINER_START = "mooring.lifecycle.container.start"
CONTAINER_STOP = "mooring.lifecycle.container.stop"
CONTAINER_RESTART = "mooring.lifecycle.container.restart"
CONTAINER_KILL = "mooring.lifecycle.container.kill"
CONTAINER_PAUSE = "mooring.lifecycle.container.pause"
CONTAINER_UNPAUSE = "mooring.lifecycle.container.unpause"
CONTAINER_RENAME = "mooring.lifecycle.container.rename"
CONTAINER_UPDATE = "mooring.lifecycle.container.update"
CONTAINER_REMOVE = "mooring.lifecycle.container.remove"
CONTAINER_PRUNE = "mooring.lifecycle.container.prune"
CONTAINER_NOTE = "mooring.lifecycle.container.note"
EXEC_CREATE = "mooring.lifecycle.exec.create"
EXEC_START = "mooring.lifecycle.exec.start"
IMAGE_ADD = "mooring.lifecycle.image.add"
IMAGE_TAG = "mooring.lifecycle.image.tag"
IMAGE_NOTE = "mooring.lifecycle.image.note"
IMAGE_REMOVE = "mooring.lifecycle.image.remove"
IMAGE_PRUNE = "mooring.lifecycle.image.prune"
VOLUME_CREATE = "mooring.lifecycle.volume.create"
VOLUME_REMOVE = "mooring.lifecycle.volume.remove"
VOLUME_PRUNE = "mooring.lifecycle.volume.prune"
NETWORK_CREATE = "mooring.lifecycle.network.create"
NETWORK_REMOVE = "mooring.lifecycle.network.remove"
NETWORK_PRUNE = "mooring.lifecycle.network.prune"
NETWORK_CONNECT = "mooring.lifecycle.network.connect"
NETWORK_DISCONNECT = "mooring.lifecycle.network.disconnect"

# --- JetStream ---
FACTS_STREAM = "facts"
FACTS = "mooring.facts.>"
FACTS_PIN = "mooring.pin.facts"
"""In the stream of facts, and no fact: see Bus.ensure_streams."""
EVENTS_STREAM = "events"
EVENTS = "mooring.events.>"

BUCKET_CONTAINERS = "containers"
BUCKET_NAMES = "names"
BUCKET_EXECS = "execs"
BUCKET_IMAGES = "images"
BUCKET_REFERENCES = "references"
BUCKET_NODES = "nodes"
BUCKET_CHANGES = "changes"
BUCKET_VOLUMES = "volumes"
BUCKET_NETWORKS = "networks"
BUCKET_NETWORK_CLAIMS = "network-claims"
"""One record, kit.models.network.NetworkClaims, under the key `all`."""


def replica(owner: str) -> str:
    """Answered by one lifecycle replica: whether the owner of a transition still lives."""
    return f"mooring.lifecycle.replica.{owner}"


def fact(node: str, kind: str) -> str:
    """The subject of a fact: `mooring.facts.<node>.container.exited` and so on."""
    return f"mooring.facts.{node}.{kind}"


def event(type_: str, action: str) -> str:
    """The subject of a Docker event; an action such as `exec_create: ls` keeps its first word."""
    return f"mooring.events.{type_}.{action.split(':', 1)[0]}"


def runtime(node: str, verb: str) -> str:
    """A command to the runtime worker of a node."""
    return f"mooring.host.{node}.runtime.{verb}"


def agent(node: str, verb: str) -> str:
    """A command to the shim agent of a node."""
    return f"mooring.host.{node}.agent.{verb}"


def builder(node: str, verb: str) -> str:
    """A command to the builder process beside the runtime worker of a node."""
    return f"mooring.host.{node}.builder.{verb}"


# verbs of the builder
BUILDER_START = "start"
BUILDER_OUTPUT = "output"
BUILDER_CANCEL = "cancel"

# verbs of the runtime worker
RUNTIME_PREPARE = "container.prepare"
RUNTIME_START = "container.start"
RUNTIME_RESTART = "container.restart"
RUNTIME_RELEASE = "container.release"
RUNTIME_REMOVE = "container.remove"
RUNTIME_SIZE = "container.size"
RUNTIME_UPDATE = "container.update"
RUNTIME_IMAGE_LOAD = "image.load"
RUNTIME_IMAGE_IMPORT = "image.import"
RUNTIME_IMAGE_REMOVE = "image.remove"
RUNTIME_IMAGE_SAVE = "image.save"
RUNTIME_COMMIT = "container.commit"
RUNTIME_EXPORT = "container.export"
RUNTIME_CHANGES = "container.changes"
RUNTIME_IMAGE_PULL = "image.pull"
RUNTIME_IMAGE_PUSH = "image.push"
RUNTIME_TRANSFER_CANCEL = "image.cancel"
RUNTIME_REGISTRY_SEARCH = "registry.search"
RUNTIME_REGISTRY_INSPECT = "registry.inspect"
RUNTIME_REGISTRY_AUTH = "registry.auth"
RUNTIME_BLOB_OPEN = "blob.open"
RUNTIME_VOLUME_PREPARE = "volume.prepare"
RUNTIME_VOLUME_REMOVE = "volume.remove"
RUNTIME_VOLUME_SIZES = "volume.sizes"
RUNTIME_ARCHIVE_READ = "archive.read"
RUNTIME_ARCHIVE_WRITE = "archive.write"
RUNTIME_ARCHIVE_OPEN_READ = "archive.open-read"
RUNTIME_ARCHIVE_OPEN_WRITE = "archive.open-write"
RUNTIME_NETWORK_ENSURE = "network.ensure"
RUNTIME_NETWORK_REMOVE = "network.remove"
RUNTIME_NETWORK_CONNECT = "network.connect"
RUNTIME_NETWORK_DISCONNECT = "network.disconnect"
RUNTIME_NETWORK_RENAME = "network.rename"
RUNTIME_NETWORK_SUBNETS = "network.subnets"
RUNTIME_BUILD_OPEN = "build.open"
RUNTIME_BUILD_KEEP = "build.keep"
RUNTIME_BUILD_DROP = "build.drop"

# verbs of the shim agent
AGENT_STOP = "container.stop"
AGENT_KILL = "container.kill"
AGENT_PAUSE = "container.pause"
AGENT_UNPAUSE = "container.unpause"
AGENT_RESIZE = "container.resize"
AGENT_TOP = "container.top"
AGENT_STATS = "container.stats"
AGENT_POLICY = "container.policy"
AGENT_FORGET = "container.forget"
AGENT_REPORT = "report"
AGENT_RENEW = "renew"
AGENT_EXEC_PREPARE = "exec.prepare"
AGENT_EXEC_START = "exec.start"
AGENT_EXEC_RESIZE = "exec.resize"
AGENT_STREAM_OPEN = "stream.open"
AGENT_STDIN = "stdin"

# kinds of facts
FACT_NODE = "node"
FACT_BRIDGE = "network.bridge"
FACT_EXITED = "container.exited"
FACT_STARTED = "container.started"
FACT_OOM = "container.oom"
FACT_HEALTH = "container.health"
FACT_EXEC_EXITED = "exec.exited"
