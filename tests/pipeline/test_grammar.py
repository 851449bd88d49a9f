"""The grammar: round trips as a property, errors by what they say, and the damage that a real bash does."""

import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.grammar import Pipeline, Step, Value, apply_overrides, parse, shell_damage

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(lambda key: key != "name")
TRICKY = st.sampled_from(["", "true", "1", "-0.5", "1e9", "a b", 'x"y', "x'y", "\\", "1e999", "a=b", "\x7f"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | TRICKY
SCALARS = TEXTS | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = SCALARS | st.lists(SCALARS, max_size=4)
STEPS = st.builds(Step, NAMES, st.dictionaries(KEYS, VALUES, max_size=4))
PIPELINES = st.builds(Pipeline, st.lists(STEPS, min_size=1, max_size=3).map(tuple))


def typed(value: Value) -> object:
    """A value with its type beside it: 1 == True == 1.0 in Python, and not here."""
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), value)


@given(PIPELINES)
def test_printing_and_parsing_are_inverse(pipeline: Pipeline) -> None:
    again = parse(str(pipeline))
    assert again == pipeline
    for before, after in zip(pipeline.steps, again.steps, strict=True):
        assert {k: typed(v) for k, v in before.options.items()} == {k: typed(v) for k, v in after.options.items()}


@given(PIPELINES)
def test_text_is_canonical(pipeline: Pipeline) -> None:
    shuffled = Pipeline(tuple(Step(s.name, dict(reversed(s.options.items()))) for s in pipeline.steps))
    assert str(shuffled) == str(pipeline)


def test_reads_the_example() -> None:
    assert parse("prune24{method=sparsegpt},qdq-int8{profile=sparse-int8}").steps == (
        Step("prune24", {"method": "sparsegpt"}),
        Step("qdq-int8", {"profile": "sparse-int8"}),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("8", 8),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("2:4", "2:4"),
        ("*.fc1/*", "*.fc1/*"),
        ('"8"', "8"),
        ("'a b'", "a b"),
        ("007", 7),
        ("[a;2;true]", ["a", 2, True]),
        ("[]", []),
    ],
)
def test_values(text: str, value: Value) -> None:
    (step,) = parse(f"p{{k={text}}}").steps
    assert typed(step.options["k"]) == typed(value)


def test_options_are_separated_by_commas_or_blanks() -> None:
    assert parse("p{a=1,b=2}") == parse("p{a=1 b=2}") == parse(" p { a = 1 ,  b=2 } ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the name of a pass"),
        ("p,", "the name of a pass"),
        ("p q", "','"),
        ("p{a}", "'='"),
        ("p{a=}", "a value"),
        ("p{=1}", "KEY=VALUE"),
        ("p{,a=1}", "KEY=VALUE"),
        ("p{a=1,,b=2}", "KEY=VALUE"),
        ("p{a=1,}", "KEY=VALUE"),
        ("p{a=1,a=2}", "given twice"),
        ("p{name=x}", "the pass's own"),
        ("p{a=[1,2]}", "';'"),
        ("p{a=[1;[2]]}", "an item"),
        ('p{a="b}', "closing quote"),
        ("p}", "','"),
    ],
)
def test_bad_text_says_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "character" in str(caught.value)


@pytest.mark.parametrize("text", ["prune24{a=1", "prune24a=1", "prune24a=1,qdq-int8c=1"])
def test_what_a_shell_leaves_of_braces_is_told_to_be_quoted(text: str) -> None:
    with pytest.raises(UsageError, match="quote the text"):
        parse(text)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    "typed_by_user",
    [
        "prune24{a=1,b=2} model.onnx",
        "model.onnx prune24{a=1 b=2}",
        "prune24{a=1,b=2},qdq-int8{c=1,d=2} model.onnx",
        "prune24{a=1, b=2} model.onnx",
    ],
)
def test_damage_by_a_real_bash_is_recognised(typed_by_user: str) -> None:
    script = "import sys; print(chr(10).join(sys.argv[1:]))"
    command = ["bash", "-c", f'"$0" -c "$1" {typed_by_user}', sys.executable, script]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(words) > 2, "bash took nothing apart: the test shows nothing"
    error = shell_damage(words[1:])
    assert error is not None
    assert "quote the text" in str(error)


def test_ordinary_arguments_are_not_damage() -> None:
    assert shell_damage(["model.onnx", "-o", "out/model.onnx", "--samples"]) is None


def test_overrides_set_every_step_of_the_name_and_the_last_wins() -> None:
    pipeline = parse("p{a=1},q,p")
    changed = apply_overrides(pipeline, ["p.a=2", "p.b=x y", "p.a=3", "q.c=[u;v]"])
    assert str(changed) == 'p{a=3,b="x y"},q{c=[u;v]},p{a=3,b="x y"}'


@pytest.mark.parametrize("text", ["p", "p.a", "p=1", ".a=1", "p.=1", "p.a b=1"])
def test_bad_override(text: str) -> None:
    with pytest.raises(UsageError, match=r"PASS\.KEY=VALUE"):
        apply_overrides(parse("p"), [text])


def test_override_of_an_absent_pass_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'prune24'"):
        apply_overrides(parse("prune24,qdq-int8"), ["prune42.method=magnitude"])
