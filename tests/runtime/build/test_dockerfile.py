"""From the text of a Dockerfile to stages of instructions."""

from __future__ import annotations

import pytest

from mooring.runtime.build.dockerfile import parser, stages
from mooring.runtime.build.dockerfile.errors import DockerfileError
from mooring.runtime.build.dockerfile.instructions import (
    Arg,
    Copy,
    Healthcheck,
    OnBuild,
    Pairs,
    Program,
    Words,
)


def only(text: str) -> object:
    """The one instruction after FROM."""
    (command,) = stages.read(f"FROM bb\n{text}").stages[0].commands
    return command


# --- lines ---


def test_comments_and_empty_lines_are_no_instructions() -> None:
    parsed = parser.parse("# one\n\n  # two\nFROM bb\n\n#three\n  RUN a\n")
    assert [(n.name, n.rest, n.line) for n in parsed.nodes] == [("FROM", "bb", 4), ("RUN", "a", 7)]


def test_a_continued_line_is_joined_without_the_comments_between() -> None:
    parsed = parser.parse("FROM bb\nRUN a && \\\n  # why\n  b \\  \n  c\nRUN d")
    assert [n.original for n in parsed.nodes] == ["FROM bb", "RUN a &&   b   c", "RUN d"]
    assert [n.line for n in parsed.nodes] == [1, 2, 6]
    assert parsed.warnings == ()


def test_an_empty_continuation_line_is_warned_of() -> None:
    parsed = parser.parse("FROM bb\nRUN a \\\n\n  b\n")
    assert parsed.nodes[1].rest == "a   b"
    assert parsed.warnings == (
        "[WARNING]: Empty continuation line found in:\n    RUN a   b",
        "[WARNING]: Empty continuation lines will become errors in a future release.",
    )


def test_the_escape_directive_changes_what_continues_a_line() -> None:
    parsed = parser.parse("# syntax=docker/dockerfile:1\n# escape=`\nFROM bb\nRUN a `\n  c:\\\n")
    assert parsed.escape == "`"
    assert parsed.nodes[1].rest == "a   c:\\"


def test_a_directive_after_a_comment_is_a_comment() -> None:
    assert parser.parse("# hello\n# escape=`\nFROM bb\n").escape == "\\"


def test_windows_line_ends_and_a_byte_order_mark_are_no_matter() -> None:
    parsed = parser.parse("\ufeffFROM bb\r\nRUN a \\\r\n b\r\n")
    assert [n.rest for n in parsed.nodes] == ["bb", "a  b"]


def test_flags_are_taken_off_the_front() -> None:
    (node,) = parser.parse('COPY --from=x --chown="a b" y --z /').nodes
    assert node.flags == ("--from=x", "--chown=a b")
    assert node.rest == "y --z /"


def test_heredocs_belong_to_their_instruction() -> None:
    text = "FROM bb\nCOPY <<A <<-'B' /x/\n1 $x\nA\n\t2\n\tB\nRUN <<EOF\necho hi\nEOF\nRUN b\n"
    nodes = parser.parse(text).nodes
    assert [(h.name, h.content, h.expand, h.chomp) for h in nodes[1].heredocs] == [
        ("A", "1 $x\n", True, False),
        ("B", "2\n", False, True),
    ]
    assert nodes[2].heredocs[0].content == "echo hi\n"
    assert (nodes[3].name, nodes[3].line) == ("RUN", 10)


@pytest.mark.parametrize("text", ["RUN cat <<<x", "RUN echo '<<EOF'", 'RUN echo "a <<EOF b"'])
def test_what_only_looks_like_a_heredoc_is_none(text: str) -> None:
    assert parser.parse(text).nodes[0].heredocs == ()


def test_no_line_is_longer_than_dockers() -> None:
    with pytest.raises(DockerfileError, match="dockerfile line greater than max allowed size"):
        parser.parse("FROM bb\nRUN " + "x" * 65535)


@pytest.mark.parametrize("piece", ['"', "--chown=0 "])
def test_a_line_takes_no_longer_than_its_length_asks_for(piece: str) -> None:
    """By the square of it this would take half an hour."""
    part = piece * (60_000 // len(piece))
    (node,) = parser.parse("COPY " + "\\\n".join([part] * 70)).nodes
    assert len(node.rest) + len(node.flags) > 400_000


def test_an_array_too_deep_to_be_read_is_no_array() -> None:
    command = only("RUN " + "[" * 60_000)
    assert isinstance(command, Program)
    assert command.words == ("[" * 60_000,)
    assert command.shell


# --- instructions ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "failed to parse Dockerfile: file with no instructions"),
        ("RUN a", "no build stage in current context"),
        ("ARG a", "no build stage in current context"),
        ("FROM bb\n\nFOO x", "dockerfile parse error line 3: unknown instruction: FOO"),
        ("FROM bb\nENV a", "dockerfile parse error line 2: ENV must have two arguments"),
        (
            "FROM bb\nENV a=b c",
            'dockerfile parse error line 2: Syntax error - can\'t find = in "c". '
            "Must be of the form: name=value",
        ),
        ("FROM bb\nLABEL =x", "dockerfile parse error line 2: LABEL names can not be blank"),
        (
            "FROM bb foo",
            "dockerfile parse error line 1: FROM requires either one or three arguments",
        ),
        (
            "FROM bb AS 1x",
            'dockerfile parse error line 1: invalid name for build stage: "1x", '
            "name can't start with a number or contain symbols",
        ),
        ("FROM bb AS a\nFROM bb AS a", "dockerfile parse error line 2: a stage name already used"),
        ("FROM bb\nCOPY --foo=x a b", "dockerfile parse error line 2: Unknown flag: foo"),
        (
            "FROM bb\nCOPY --from a b",
            "dockerfile parse error line 2: Missing a value on flag: from",
        ),
        (
            "FROM bb\nCOPY --from=a --from=b a b",
            "dockerfile parse error line 2: Duplicate flag specified: from",
        ),
        (
            "FROM bb\nCMD [1]",
            "dockerfile parse error line 2: when using JSON array syntax, "
            "arrays must be comprised of strings only",
        ),
        (
            "FROM bb\nSHELL x",
            "dockerfile parse error line 2: SHELL requires the arguments to be in JSON form",
        ),
        (
            "FROM bb\nHEALTHCHECK FOO",
            'dockerfile parse error line 2: Unknown type "FOO" in HEALTHCHECK (try CMD)',
        ),
        (
            "FROM bb\nHEALTHCHECK --interval=5 CMD x",
            'dockerfile parse error line 2: time: missing unit in duration "5"',
        ),
        (
            "FROM bb\nONBUILD FROM x",
            "dockerfile parse error line 2: FROM isn't allowed as an ONBUILD trigger",
        ),
        ("FROM bb\nRUN <<EOF\na\n", "dockerfile parse error line 2: unterminated heredoc: EOF"),
        (
            "# escape=x\nFROM bb",
            "dockerfile parse error line 1: invalid escape token 'x' does not match ` or \\",
        ),
    ],
)
def test_a_bad_dockerfile_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as failure:
        stages.read(text)
    assert str(failure.value) == message


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("ENV a=b", (("a", "b"),)),
        ("ENV a b  c ", (("a", "b  c"),)),
        ("ENV a=\"b c\" d='e f' g=h\\ i", (("a", '"b c"'), ("d", "'e f'"), ("g", "h\\ i"))),
        ("LABEL a=b=c", (("a", "b=c"),)),
    ],
)
def test_pairs_keep_their_quotes_until_they_are_expanded(
    text: str, pairs: tuple[tuple[str, str], ...]
) -> None:
    command = only(text)
    assert isinstance(command, Pairs)
    assert command.pairs == pairs


@pytest.mark.parametrize(
    ("text", "words", "shell"),
    [
        ("RUN a b", ("a b",), True),
        ('RUN ["a", "b c"]', ("a", "b c"), False),
        ("RUN [a]", ("[a]",), True),
        ("CMD", (), True),
        ("ENTRYPOINT []", (), False),
    ],
)
def test_programs_have_a_shell_and_an_exec_form(
    text: str, words: tuple[str, ...], shell: bool
) -> None:
    command = only(text)
    assert isinstance(command, Program)
    assert (command.words, command.shell) == (words, shell)


def test_copy_takes_its_sources_its_destination_and_its_flags() -> None:
    command = only('COPY --from=0 --chown=a:b --chmod=755 ["x y", "z", "/d/"]')
    assert isinstance(command, Copy)
    assert (command.sources, command.destination) == (("x y", "z"), "/d/")
    assert (command.from_, command.chown, command.chmod) == ("0", "a:b", "755")


def test_a_health_check_is_what_the_config_will_have() -> None:
    command = only('HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD ["x", "y"]')
    assert isinstance(command, Healthcheck)
    assert command.config == {
        "Test": ["CMD", "x", "y"],
        "Interval": 90_000_000_000,
        "Timeout": 500_000_000,
        "Retries": 3,
    }


def test_other_instructions_keep_their_words() -> None:
    commands = (
        stages.read('FROM bb\nARG a b=c\nEXPOSE 80 90\nVOLUME ["/a b"]\nUSER x y\nONBUILD RUN z')
        .stages[0]
        .commands
    )
    assert isinstance(commands[0], Arg)
    assert commands[0].arguments == (("a", None), ("b", "c"))
    assert [c.words for c in commands if isinstance(c, Words)] == [
        ("80", "90"),
        ("/a b",),
        ("x y",),
    ]
    assert isinstance(commands[4], OnBuild)
    assert commands[4].expression == "RUN z"


# --- stages ---

THREE = "ARG V=1\nFROM a AS One\nRUN x\nFROM b\nFROM one AS two\nRUN y\n"


def test_a_dockerfile_is_arguments_and_stages() -> None:
    dockerfile = stages.read(THREE)
    assert [stage.name for stage in dockerfile.stages] == ["one", "1", "two"]
    assert dockerfile.steps == 6


@pytest.mark.parametrize(("target", "count"), [("one", 1), ("ONE", 1), ("1", 2), ("", 3)])
def test_a_target_ends_the_build(target: str, count: int) -> None:
    assert len(stages.select(stages.read(THREE), target, {}).stages) == count


def test_a_target_that_is_not_there_is_refused() -> None:
    with pytest.raises(DockerfileError, match="failed to reach build target nope in Dockerfile"):
        stages.select(stages.read(THREE), "nope", {})


def test_labels_of_the_user_are_a_last_instruction() -> None:
    last = stages.select(stages.read(THREE), "", {"b": "x y", "a": "1"}).stages[-1].commands[-1]
    assert isinstance(last, Pairs)
    assert last.original == 'LABEL a=1 b="x y"'
    assert last.pairs == (("a", "1"), ("b", "x y"))
