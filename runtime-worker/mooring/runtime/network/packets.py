"""What the worker and mooring-network agree on: one JSON object to a packet."""

PACKET = 64 << 10
"""Bytes of one at most."""
GOODBYE = b'{"goodbye": true}'
"""What the service says, unasked, before it ends as it has nothing to keep."""
