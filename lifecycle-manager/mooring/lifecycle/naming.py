"""Container names: what is a valid one, and random ones from two words of our own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import count

from mooring.kit.errors import InvalidParameter

_VALID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")

_PLAIN = 4
"""How many plain names are tried before one with a number."""

_QUALITIES = (  # noqa: SIM905  (a list literal would be pages long)
    "ample amber apt azure balmy bold brave brisk bright calm candid chalky chief civil clear "
    "clever cobalt coral cosy crisp curious deft eager early earnest easy fair fast fine firm "
    "fleet fluent fond frank free fresh gentle glad golden grand green handy happy hardy hearty "
    "honest humble idle jolly jovial keen kind lasting light lively loyal lucid lucky mellow "
    "merry mild misty modest neat nimble noble novel olive open patient plain placid polite "
    "prime proud quick quiet rapid rare ready robust rosy round royal rural rustic sage sandy "
    "serene sharp shiny silent silver simple smart snug sober solid sound spry stable steady "
    "still stout sturdy sunny sure swift tame tidy tidal trim true trusty upbeat vast vivid "
    "warm wary whole wide windy wise witty zesty"
).split()
_THINGS = (  # noqa: SIM905  (a list literal would be pages long)
    "anchor atoll bank barge bark barrel basin bay beacon berth boat bollard boom bow bridge "
    "brig bulwark buoy cabin cable canal canoe capstan cargo chart clipper cliff coast compass "
    "cove crane crew current cutter davit deck delta dinghy dock drift ebb estuary fathom ferry "
    "fjord fleet float flood foam fork frigate galley gangway gull gunwale hatch harbour haven "
    "hawser helm hold hull inlet island jetty jib keel ketch knot lagoon landing lantern launch "
    "ledge lighthouse line lock locker log lugger mast mizzen moor narrows oar outrigger paddle "
    "pennant pier pilot pontoon port prow punt quay raft reef rigging rope rudder sail schooner "
    "sextant shallop shoal shore skiff skipper sloop sound spar spit spray squall stern strait "
    "strand surf swell tack tender tide tiller transom trawler tug voyage wake wave wharf winch "
    "yacht yawl"
).split()


def check_name(name: str) -> None:
    """InvalidParameter, in Docker's words, for what can't be a container's name."""
    if not _VALID.fullmatch(name):
        raise InvalidParameter(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )


def candidates(seed: str) -> Iterator[str]:
    """Random names, without end; the same ones in the same order for the same seed.

    So a create that is repeated after a crash comes upon the name that it had claimed.
    """
    for attempt in count():
        value = int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:8], "big")
        value, quality = divmod(value, len(_QUALITIES))
        value, thing = divmod(value, len(_THINGS))
        name = f"{_QUALITIES[quality]}_{_THINGS[thing]}"
        # Once the plain names get scarce, a number makes room.
        yield name if attempt < _PLAIN else f"{name}{value % 10 ** min(attempt, 9)}"
