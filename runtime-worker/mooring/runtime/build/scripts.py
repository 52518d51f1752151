"""What RUN executes: its words, or the documents that follow it."""

from __future__ import annotations

import re

from .config import Config, program, shell_of
from .dockerfile.instructions import Program

_ONLY_DOCUMENT = re.compile(r"<<-?\S+")


def script(command: Program, config: Config) -> list[str]:
    """The words of a RUN; with documents they are part of the script that the shell reads."""
    if not command.heredocs:
        return program(command, config)
    line = command.words[0]
    first = command.heredocs[0]
    if len(command.heredocs) == 1 and _ONLY_DOCUMENT.fullmatch(line.strip()):
        if first.content.startswith("#!"):
            return [*shell_of(config), _with_interpreter(first.content, first.name)]
        return [*shell_of(config), first.content]
    documents = "".join(f"{each.content}{each.name}\n" for each in command.heredocs)
    return [*shell_of(config), f"{line}\n{documents}"]


def _with_interpreter(content: str, name: str) -> str:
    """A document that begins with `#!`: its own program reads it, from shared memory."""
    interpreter = content.partition("\n")[0][2:].strip()
    end = name
    while f"\n{end}\n" in content:
        end += "_"
    file = f"/dev/shm/{re.sub(r'[^A-Za-z0-9_]', '_', name)}"
    return f"cat > {file} <<'{end}'\n{content}{end}\nexec {interpreter} {file}\n"
