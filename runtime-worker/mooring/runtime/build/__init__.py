"""`docker build`: the classic builder."""
