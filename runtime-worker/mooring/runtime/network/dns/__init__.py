"""Names inside containers: the server at 127.0.0.11 and what it knows."""
