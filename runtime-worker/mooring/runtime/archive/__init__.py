"""Files of containers as tar streams: what docker cp reads and writes."""
