"""Tests of the shim agent."""
