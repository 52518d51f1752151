"""What the tests of `docker build` share: an engine, a context, and ways to build."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import Engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("build"), DOCKER_BUILDKIT="0")
    engine.up("--set", "faults=true")
    try:
        engine.load()
        yield engine
    finally:
        engine.down("--containers")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    (directory / "dir" / "sub").mkdir(parents=True)
    (directory / "one").write_text("one\n")
    (directory / "dir" / "f").write_text("f\n")
    (directory / "dir" / "sub" / "g").write_text("g\n")
    (directory / "dir" / "run.sh").write_text("#!/bin/sh\n")
    (directory / "dir" / "run.sh").chmod(0o755)
    return directory


def build(
    engine: Engine, context: Path, dockerfile: str, *args: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """docker build of this Dockerfile; no network for what runs in it."""
    (context / "Dockerfile").write_text(dockerfile)
    return engine.docker("build", "--network", "none", *args, str(context), check=check)


def archive(files: dict[str, str]) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def post(engine: Engine, query: str, files: dict[str, str]) -> tuple[int, list[dict[str, Any]]]:
    """POST /build as it is on the wire: the status and the lines."""
    answer = engine.api("POST", f"/build?networkmode=none&{query}", raw=archive(files))
    return answer.status, [json.loads(line) for line in answer.body.splitlines()]


def said(lines: list[dict[str, Any]]) -> str:
    return "".join(line.get("stream", "") for line in lines)


def image_id(engine: Engine, name: str) -> str:
    return engine.out("image", "inspect", "-f", "{{.Id}}", name)


def config(engine: Engine, name: str) -> Any:
    return json.loads(engine.out("image", "inspect", "-f", "{{json .Config}}", name))


STEPS = """FROM bb
ENV A=1 B="two words"
RUN echo hi; echo $B > /b
COPY one /x/
WORKDIR /w
CMD ["cat", "/b"]
"""
