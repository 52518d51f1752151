"""Volumes of this host: their directories, what is mounted there, and filling them."""
