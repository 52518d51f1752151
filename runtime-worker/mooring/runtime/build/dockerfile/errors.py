"""What can be wrong with a Dockerfile; the messages are for the user."""

from __future__ import annotations


class DockerfileError(ValueError):
    """A Dockerfile that cannot be built; found before the first step."""

    @classmethod
    def at(cls, line: int, message: str) -> DockerfileError:
        """The same for something on one line (the first one of an instruction)."""
        return cls(f"dockerfile parse error line {line}: {message}")


class StepError(ValueError):
    """An instruction that fails when its turn comes."""
