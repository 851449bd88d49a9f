"""Errors in the caller's words: parameters in Python, options on the command line."""

import re
from pathlib import Path
from typing import Any

import pytest

import gpusq_onnx
from gpusq_onnx.cli import main
from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.grammar import QUOTE_HINT
from gpusq_onnx.wording import as_options, in_python, worded

ASSETS = Path(__file__).parents[1] / "assets"
MODEL, IMAGES = ASSETS / "digits_vit.onnx", ASSETS / "digits_test.npz"
FEW = {"samples": 4}

CALLS: dict[str, tuple[Any, str, str]] = {
    "compress": (lambda: gpusq_onnx.compress(MODEL, "prune24", output=MODEL), "next", "give another output"),
    "plan": (lambda: gpusq_onnx.plan(MODEL, "recipe.toml"), "next", "a recipe is Path('recipe.toml') in Python"),
    "tune": (lambda: gpusq_onnx.tune(MODEL, data=IMAGES, budget="agreement>=2"), "where", "budget"),
    "check": (
        lambda: gpusq_onnx.check(MODEL, MODEL, data=IMAGES, data_options=FEW, gates={"min_ap": 0.5}),
        "where",
        "min_ap, max_ap_drop",
    ),
    "bench": (lambda: gpusq_onnx.bench([MODEL], backend="onnx"), "next", "did you mean 'onnxruntime'?"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("verb", CALLS)
def test_an_error_names_the_parameter(verb: str) -> None:
    act, key, words = CALLS[verb]
    with pytest.raises(UsageError) as caught:
        act()
    assert str(caught.value.details[key]).startswith(words)
    assert not re.search(
        r"(^|[^\w])(--[a-z]|-o\b)", str(caught.value).partition(" on the command line")[0].partition(", and --")[0]
    )


def test_the_command_line_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "-p", "prune24", "-o", str(MODEL), str(MODEL)]) == 2
    assert "-o/--output" in capsys.readouterr().err


def test_text_with_a_command_stays() -> None:
    assert in_python("see gpusq-onnx check --parser") == "see gpusq-onnx check --parser"
    assert in_python("leave --crop-ratio out, or give --set a.b=1") == "leave crop_ratio out, or give overrides a.b=1"
    assert in_python("/data/a--b.onnx") == "/data/a--b.onnx"
    assert in_python(QUOTE_HINT) == "e.g. 'prune24{method=sparsegpt},qdq-int8'"


def test_it_is_the_caller_that_counts() -> None:
    @worded
    def refuse() -> None:
        raise UsageError("no", where="--data")

    with pytest.raises(UsageError, match="where: --data"), as_options():
        refuse()
    with pytest.raises(UsageError, match="where: data"):
        refuse()


def test_warnings_of_a_result_name_the_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warning = gpusq_onnx.compress(MODEL, "qdq-int8", data_options=FEW).warnings[0]
    assert warning.startswith("NO DATA was given (data): ") and "--" not in warning
    assert main(["apply", "-p", "qdq-int8", "--samples", "4", "-o", str(tmp_path / "out.onnx"), str(MODEL)]) == 0
    assert "NO DATA was given (--data): " in capsys.readouterr().err
