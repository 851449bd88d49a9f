from pathlib import Path

import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UsageError


def test_command_line_spelling_of_mean_and_std() -> None:
    options = DataOptions.from_values({"mean": "0.5,0.25, 0", "std": "0.5"})
    assert options.mean == (0.5, 0.25, 0.0)
    assert options.std == (0.5,)


def test_toml_is_relative_to_itself_and_explicit_values_win(tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text('path = "images"\nclasses = "classes.txt"\nresize = 248\nmean = 0.5\nsamples = 8\n')
    options = DataOptions.from_toml(file, {"samples": 32})
    assert options.path == tmp_path / "images"
    assert options.classes == tmp_path / "classes.txt"
    assert (options.resize, options.mean, options.samples) == (248, (0.5,), 32)


def test_echo_is_plain_and_round_trips() -> None:
    options = DataOptions.from_values({"path": "images", "crop": 224, "seed": 3})
    assert options.echo()["path"] == "images"
    assert DataOptions.from_values(options.echo()) == options


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"reszie": 248}, "did you mean 'resize'"),
        ({"samples": 0}, "samples must be greater"),
        ({"mean": "0.5,0.5"}, "1 or 3 values"),
        ({"mean": "a,b,c"}, "mean must be a valid number"),
        ({"std": "0,1,1"}, "std must be above 0"),
        ({"resize": 200, "crop": 224}, "resize (200)"),
        ({"layout": "CHWN"}, "layout must be"),
        ({"interpolation": "cubic"}, "'bicubic'"),
    ],
)
def test_mistyped_options_are_usage_errors(values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as error:
        DataOptions.from_values(values)
    assert says in str(error.value)


@pytest.mark.parametrize("text", [None, "path = ", "[data]\nresize = 3\n"])
def test_unusable_toml_is_a_usage_error(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "data.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=r"data\.toml"):
        DataOptions.from_toml(file)
