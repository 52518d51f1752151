"""The `mooring` command: start and stop the engine, and use it without the docker CLI."""
