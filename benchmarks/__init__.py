"""Speed and memory of the engine beside Debian's dockerd, in one run on one machine."""
