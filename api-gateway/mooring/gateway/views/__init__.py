"""The records by every name they have, and as bytes that are ready to be sent."""
