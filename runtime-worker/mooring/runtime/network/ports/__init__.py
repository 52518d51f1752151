"""Published ports: the decisions, the host's sockets, and the relay for what the kernel cannot."""
