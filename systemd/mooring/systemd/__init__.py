"""Mooring on a systemd host: the units, what installs and drives them, what they report."""
