"""The handlers, a file for each section of the Docker API."""
