"""The filters of the container list. The same name several times: or. Different names: and."""

from __future__ import annotations

from collections.abc import Callable

from mooring.gateway.schema.containers import RUNNING_STATES, shown_state
from mooring.gateway.schema.query import Filters, boolean_filter, has_labels
from mooring.kit.errors import InvalidParameter, NotFound
from mooring.kit.models.container import ContainerRecord

from .containers import ContainerViews
from .images import ImageViews
from .networks import NetworkViews
from .patterns import compile_pattern

NAMES = frozenset(
    {
        "ancestor",
        "before",
        "exited",
        "expose",
        "health",
        "id",
        "is-task",
        "isolation",
        "label",
        "name",
        "network",
        "publish",
        "since",
        "status",
        "volume",
    }
)
_STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
_HEALTH = ("none", "starting", "healthy", "unhealthy")

Test = Callable[[ContainerRecord], bool]


def select(
    views: ContainerViews, images: ImageViews, given: Filters, *, stopped: bool, limit: int
) -> list[ContainerRecord]:
    """The containers that pass, newest first; InvalidParameter, NotFound (before, since)."""
    tests = _tests(views, images, given)
    if not (stopped or limit > 0 or "status" in given or "exited" in given):
        tests.append(lambda record: record.state in RUNNING_STATES)
    records = views.newest_first()
    if tests:
        records = [record for record in records if all(test(record) for test in tests)]
    return records[:limit] if limit > 0 else records


def _tests(views: ContainerViews, images: ImageViews, given: Filters) -> list[Test]:
    tests: list[Test] = []
    for name, values in given.items():
        match name:
            case "label":
                tests.append(lambda r, v=values: has_labels(r.config.labels, v))  # type: ignore[misc]
            case "before" | "since":
                tests.append(_age(views, name, values))
            case "ancestor":
                tests.append(_ancestor(images, values))
            case "publish" | "expose":
                tests.append(_ports(name, values))
            case "network":
                tests.append(_network(views.networks, set(values)))
            case "is-task":
                # Nothing here belongs to a service.
                wanted = boolean_filter(given, "is-task")
                tests.append(lambda record, w=wanted: not w)  # type: ignore[misc]
            case _:
                tests.append(_simple(name, values))
    return tests


def _simple(name: str, values: list[str]) -> Test:
    wanted = set(values)
    match name:
        case "id":
            return lambda record: record.id.startswith(tuple(wanted))
        case "name":
            patterns = [compile_pattern(value, "name") for value in values]
            return lambda record: any(
                pattern.search(record.name) or pattern.search(f"/{record.name}")
                for pattern in patterns
            )
        case "status":
            _among(name, wanted, _STATUSES)
            return lambda record: shown_state(record) in wanted
        case "health":
            _among(name, wanted, _HEALTH)
            return lambda record: (record.health.status if record.health else "none") in wanted
        case "exited":
            codes = {_exit_code(value) for value in values}
            return lambda record: shown_state(record) == "exited" and record.exit_code in codes
        case "volume":
            return lambda record: any(
                mount.destination in wanted or mount.source in wanted or mount.name in wanted
                for mount in record.mounts
            )
    # isolation: there is only the default one on Linux.
    return lambda record: bool(wanted & {"", "default"})


def _network(networks: NetworkViews, wanted: set[str]) -> Test:
    """Containers on a network, by its name or (a prefix of) its id."""
    ids = networks.ids()

    def test(record: ContainerRecord) -> bool:
        names = list(record.network.endpoints) or list(record.networking)
        if not names and not record.disconnected:
            names = [_mode(record)]
        return any(
            name in wanted or (name in ids and ids[name].startswith(tuple(wanted)))
            for name in names
        )

    return test


def _mode(record: ContainerRecord) -> str:
    mode = record.host_config.network_mode
    return "bridge" if mode in ("", "default") else mode


def _among(name: str, wanted: set[str], known: tuple[str, ...]) -> None:
    for value in wanted:
        if value not in known:
            raise InvalidParameter(f"invalid filter '{name}={value}'")


def _exit_code(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidParameter(f"invalid filter 'exited={text}'") from None


def _age(views: ContainerViews, name: str, values: list[str]) -> Test:
    moments = [views.find(value).created_ns for value in values]
    if name == "before":
        return lambda record: any(record.created_ns < moment for moment in moments)
    return lambda record: any(record.created_ns > moment for moment in moments)


def _ancestor(images: ImageViews, values: list[str]) -> Test:
    """Containers of an image, or of one that was built on it.

    Either it says so, or its layers are that image's and more. (Images that differ in nothing but
    their configuration have the same layers, and none of them need be another's ancestor.)
    """
    stacks: list[tuple[str, list[str]]] = []
    for value in values:
        try:
            image = images.find(value)
        except (NotFound, InvalidParameter):
            continue
        stacks.append((image.id, [layer.diff_id for layer in image.layers]))

    def test(record: ContainerRecord) -> bool:
        mine = images.get(record.image_id)
        layers = [layer.diff_id for layer in mine.layers] if mine is not None else []
        lineage = {each for each, _ in images.lineage(mine)} if mine is not None else set()
        return any(
            image_id in {record.image_id, *lineage}
            or (stack and len(layers) > len(stack) and layers[: len(stack)] == stack)
            for image_id, stack in stacks
        )

    return test


def _ports(name: str, values: list[str]) -> Test:
    wanted: set[str] = set()
    for value in values:
        wanted |= _port_range(name, value)
    if name == "expose":
        return lambda record: bool(wanted & set(record.config.exposed_ports or ()))
    return lambda record: bool(wanted & set(record.host_config.port_bindings or ()))


def _port_range(name: str, text: str) -> set[str]:
    ports, _, protocol = text.partition("/")
    first, _, last = ports.partition("-")
    try:
        low, high = int(first), int(last or first)
        if not 0 < low <= high < 65536:
            raise ValueError
    except ValueError:
        raise InvalidParameter(f"invalid filter '{name}={text}'") from None
    return {f"{port}/{protocol or 'tcp'}" for port in range(low, high + 1)}
