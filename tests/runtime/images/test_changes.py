"""Dockerfile instructions applied to an image's config."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.runtime.images.changes import InvalidChange, apply


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["CMD echo 'a b'"], {"Cmd": ["/bin/sh", "-c", "echo 'a b'"]}),
        (['CMD ["echo", "a b"]'], {"Cmd": ["echo", "a b"]}),
        (["cmd []"], {"Cmd": []}),
        (["CMD [echo]"], {"Cmd": ["/bin/sh", "-c", "[echo]"]}),
        (['ENTRYPOINT ["/init"]'], {"Entrypoint": ["/init"]}),
        (['SHELL ["/bin/bash", "-c"]', "CMD x"], {"Shell": ["/bin/bash", "-c"], "Cmd": 3}),
        (['ENV A=1 B=\'x y\' C="q\\"" A=2'], {"Env": ["A=2", "B=x y", 'C=q"']}),
        (["ENV PATH /bin:/usr/bin"], {"Env": ["PATH=/bin:/usr/bin"]}),
        (["EXPOSE 80 53/udp 8000-8001"], {"ExposedPorts": 4}),
        (["USER app:staff"], {"User": "app:staff"}),
        (['VOLUME ["/a", "/b c"]', "VOLUME /d /e"], {"Volumes": 4}),
        (["WORKDIR /a", "WORKDIR b/../c"], {"WorkingDir": "/a/c"}),
        (["LABEL a=1 'b c'=2"], {"Labels": {"a": "1", "b c": "2"}}),
        (["STOPSIGNAL SIGINT"], {"StopSignal": "SIGINT"}),
        (["ONBUILD RUN make"], {"OnBuild": ["RUN make"]}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (
            ["HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl x || exit 1"],
            {
                "Healthcheck": {
                    "Interval": 90_000_000_000,
                    "Timeout": 500_000_000,
                    "Retries": 3,
                    "Test": ["CMD-SHELL", "curl x || exit 1"],
                }
            },
        ),
        (["# a comment\nCMD a \\\n b\n\nUSER x"], {"Cmd": 3, "User": "x"}),
        ([], {}),
    ],
)
def test_an_instruction_changes_the_config(changes: list[str], expected: dict[str, Any]) -> None:
    config = apply({}, changes)
    # A number stands for so many words or keys.
    counted = {
        key: len(value) if isinstance(expected.get(key), int) else value
        for key, value in config.items()
    }
    assert counted == expected


def test_what_is_not_mentioned_stays_and_the_original_is_not_touched() -> None:
    config = {"Env": ["A=1", "B=2"], "User": "app", "Labels": {"x": "y"}}
    changed = apply(config, ["ENV B=3", "LABEL z=1"])
    assert changed == {"Env": ["A=1", "B=3"], "User": "app", "Labels": {"x": "y", "z": "1"}}
    assert config == {"Env": ["A=1", "B=2"], "User": "app", "Labels": {"x": "y"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("RUN make", "run is not a valid change command"),
        ("FROM x", "from is not a valid change command"),
        ("CMD", "CMD requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", "can't find = in 'B'"),
        ("ENV =x", "ENV names can not be blank"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE x/tcp", "invalid containerPort: x/tcp"),
        ("USER a b", "USER requires exactly one argument"),
        ("LABEL 'a=1", "looking for matching '"),
        ("HEALTHCHECK RUN x", 'unknown type "RUN" in HEALTHCHECK'),
        ("HEALTHCHECK --interval=1 CMD x", 'invalid duration "1"'),
        ("HEALTHCHECK --often=1s CMD x", "unknown flag: often"),
        ("HEALTHCHECK CMD", "missing command after HEALTHCHECK CMD"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("SHELL bash", "SHELL requires the arguments to be in JSON form"),
    ],
)
def test_what_is_no_change_is_refused(change: str, words: str) -> None:
    with pytest.raises(InvalidChange, match=words):
        apply({}, [change])
