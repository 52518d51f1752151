"""A real systemd host, booted by systemd-nspawn, with the engine installed as units."""
