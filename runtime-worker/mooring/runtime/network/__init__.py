"""Sandboxes, endpoints and network drivers of one host."""
