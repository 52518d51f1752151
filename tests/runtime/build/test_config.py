"""What instructions do to a config, which arguments count, and what the cache goes by."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.runtime.build.arguments import Arguments
from mooring.runtime.build.config import Step, build_key, environment
from mooring.runtime.build.dockerfile import stages
from mooring.runtime.build.dockerfile.errors import StepError
from mooring.runtime.build.dockerfile.instructions import Program, Words
from mooring.runtime.build.scripts import script


def apply(text: str, config: dict[str, Any] | None = None, *, cmd_set: bool = False) -> Any:
    """The config and the history's words after one instruction."""
    (command,) = stages.read(f"FROM bb\n{text}").stages[0].commands
    base = config or {}
    step = Step(base, environment(base, {"ARG": "a"}), "\\")
    return step.apply(command, cmd_set=cmd_set), step.config


@pytest.mark.parametrize(
    ("text", "history", "config"),
    [
        ("ENV A=1 B='x y'", "ENV A=1 B=x y", {"Env": ["A=1", "B=x y"]}),
        ("ENV A $ARG b", "ENV A=a b", {"Env": ["A=a b"]}),
        ("LABEL a=$ARG", "LABEL a=a", {"Labels": {"a": "a"}}),
        ("EXPOSE 90 80/udp", "EXPOSE 80/udp 90", {"ExposedPorts": {"90/tcp": {}, "80/udp": {}}}),
        ("EXPOSE 1-2", "EXPOSE 1 2", {"ExposedPorts": {"1/tcp": {}, "2/tcp": {}}}),
        ("VOLUME /a /b", "VOLUME [/a /b]", {"Volumes": {"/a": {}, "/b": {}}}),
        ("USER $ARG", "USER a", {"User": "a"}),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGTERM", {"StopSignal": "SIGTERM"}),
        ('SHELL ["/x", "-c"]', "SHELL [/x -c]", {"Shell": ["/x", "-c"]}),
        ("CMD a b", 'CMD ["/bin/sh" "-c" "a b"]', {"Cmd": ["/bin/sh", "-c", "a b"]}),
        ('CMD ["a", "b"]', 'CMD ["a" "b"]', {"Cmd": ["a", "b"]}),
        ("ONBUILD RUN x", "ONBUILD RUN x", {"OnBuild": ["RUN x"]}),
        ("MAINTAINER x y", "MAINTAINER x y", {}),
        (
            "HEALTHCHECK --interval=1m30s --retries=3 CMD x",
            'HEALTHCHECK &{["CMD-SHELL" "x"] "1m30s" "0s" "0s" \'\\x03\'}',
            {
                "Healthcheck": {
                    "Test": ["CMD-SHELL", "x"],
                    "Interval": 90_000_000_000,
                    "Retries": 3,
                }
            },
        ),
    ],
)
def test_an_instruction_changes_the_config_and_is_told(
    text: str, history: str, config: dict[str, Any]
) -> None:
    assert apply(text) == (history, config)


def test_a_variable_that_is_there_keeps_its_place() -> None:
    assert apply("ENV A=2", {"Env": ["A=1", "B=1"]})[1]["Env"] == ["A=2", "B=1"]


@pytest.mark.parametrize(("cmd_set", "left"), [(False, None), (True, ["c"])])
def test_an_entry_point_drops_a_command_that_this_stage_has_not_set(
    cmd_set: bool, left: list[str] | None
) -> None:
    config = apply('ENTRYPOINT ["e"]', {"Cmd": ["c"]}, cmd_set=cmd_set)[1]
    assert config["Entrypoint"] == ["e"]
    assert config.get("Cmd") == left


@pytest.mark.parametrize("text", ["ENTRYPOINT", "ENTRYPOINT []"])
def test_an_entry_point_of_nothing_takes_the_old_one_away(text: str) -> None:
    history, config = apply(text, {"Entrypoint": ["e"]})
    assert history == "ENTRYPOINT []"
    assert "Entrypoint" not in config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EXPOSE x", "Invalid containerPort: x"),
        ("EXPOSE 80/foo", "Invalid proto: foo"),
        ("EXPOSE 70000", "Invalid containerPort: 70000"),
        ("STOPSIGNAL XX", "Invalid signal: XX"),
        ('VOLUME ""', "VOLUME specified can not be an empty string"),
        ("ENV $NOPE=1", "ENV names can not be blank"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(StepError) as failure:
        apply(text)
    assert str(failure.value) == message


@pytest.mark.parametrize(
    ("before", "given", "after"),
    [
        ("", "a", "/a"),
        ("/x", "a/../b", "/x/b"),
        ("/x", "/y/", "/y"),
        ("/x", "..", "/"),
        ("", "//a", "/a"),
    ],
)
def test_a_working_directory_is_relative_to_the_last(before: str, given: str, after: str) -> None:
    step = Step({"WorkingDir": before}, {}, "\\")
    assert step.workdir(Words("WORKDIR", "", 1, (given,))) == after


def test_arguments_are_declared_given_or_inherited() -> None:
    arguments = Arguments({"A": "given", "UNUSED": "1", "http_proxy": "p", "N": None})
    arguments.declare_before("BASE", "base")
    arguments.declare_before("A", "default")
    assert arguments.before() == {"BASE": "base", "A": "given"}
    arguments.enter_stage()
    assert arguments.allowed([]) == {"http_proxy": "p"}
    arguments.declare("BASE", None)
    arguments.declare("A", "other")
    arguments.declare("B", None)
    allowed = arguments.allowed(["BASE=env"])
    assert allowed == {"A": "given", "http_proxy": "p"}
    assert arguments.cached(allowed) == ["A=given"]
    assert arguments.unused() == ["N", "UNUSED"]


def test_a_key_tells_configs_and_commands_apart_and_nothing_else() -> None:
    key = build_key({"Env": ["A=1"], "Cmd": ["x"], "Labels": {}}, ["c"])
    assert key == build_key({"Env": ["A=1"], "Cmd": ["y"]}, ["c"])
    assert key != build_key({"Env": ["A=2"]}, ["c"])
    assert key != build_key({"Env": ["A=1"]}, ["d"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RUN a b", ["/bin/sh", "-c", "a b"]),
        ('RUN ["a", "b"]', ["a", "b"]),
        ("RUN <<EOF\na\nb\nEOF", ["/bin/sh", "-c", "a\nb\n"]),
        ("RUN cat <<EOF > x\na\nEOF", ["/bin/sh", "-c", "cat <<EOF > x\na\nEOF\n"]),
    ],
)
def test_run_executes_its_words_or_its_documents(text: str, words: list[str]) -> None:
    (command,) = stages.read(f"FROM bb\n{text}\n").stages[0].commands
    assert isinstance(command, Program)
    assert script(command, {}) == words


def test_a_document_with_an_interpreter_is_read_by_it() -> None:
    (command,) = stages.read("FROM bb\nRUN <<EOF\n#!/usr/bin/env x -y\nz\nEOF\n").stages[0].commands
    assert isinstance(command, Program)
    assert script(command, {})[-1] == (
        "cat > /dev/shm/EOF <<'EOF'\n#!/usr/bin/env x -y\nz\nEOF\n"
        "exec /usr/bin/env x -y /dev/shm/EOF\n"
    )
