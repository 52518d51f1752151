"""Whether a further process can be started in a container now; in Docker's words."""

from __future__ import annotations

from .errors import Conflict
from .models.container import ContainerRecord, State


def check_executable(container: ContainerRecord) -> None:
    """Conflict if nothing can be executed in it."""
    match container.state:
        case State.RUNNING | State.STOPPING if container.pid:
            return
        case State.PAUSED:
            raise Conflict(f"Container {container.id} is paused, unpause the container before exec")
        case State.RESTARTING:
            raise Conflict(
                f"Container {container.id} is restarting, wait until the container is running"
            )
    raise Conflict(f"container {container.id} is not running")
