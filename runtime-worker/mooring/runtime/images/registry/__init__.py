"""Talking to registries: a short-lived process that pulls and pushes, and the worker's side."""
