from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.errors import UnsupportedDataError, UsageError

X = InputSpec("x", np.dtype(np.float32), ("batch", 2))


def opened(folder: Path, text: str, suffix: str = "", spec: InputSpec = X, samples: int | None = None) -> Source:
    (folder / "feeds.py").write_text("import numpy as np\n" + text)
    return open_source(DataOptions(path=Path(f"{folder / 'feeds.py'}{suffix}"), samples=samples), [spec])


FIVE = """
def load_data():
    for number in range(5):
        yield {"x": np.full((2, 2), number, np.float32)}
"""


def test_feeds_come_as_the_script_made_them(tmp_path: Path) -> None:
    source = opened(tmp_path, FIVE)
    for _ in range(2):
        assert [(int(b.feed["x"][0, 0]), b.size, b.labels) for b in source.batches(64)] == [
            (number, 2, None) for number in range(5)
        ]
    assert len(source) == 10
    assert not source.labelled


def test_samples_count_rows(tmp_path: Path) -> None:
    source = opened(tmp_path, FIVE, samples=3)
    assert [b.size for b in source.batches(1)] == [2, 2]
    assert len(source) == 4


def test_another_function_and_a_list(tmp_path: Path) -> None:
    text = "def mine():\n    return [{'x': [[1, 2]]}, {'x': np.zeros((1, 2), np.float32)}]\n"
    with pytest.raises(UnsupportedDataError, match="int64"):
        opened(tmp_path, text, ":mine")
    source = opened(tmp_path, text.replace("[[1, 2]]", "np.ones((1, 2), np.float32)"), ":mine")
    assert len(source) == 2


def test_a_neighbour_module_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "gpusq_test_neighbour.py").write_text("import numpy as np\nROW = np.ones((1, 2), np.float32)\n")
    text = "from gpusq_test_neighbour import ROW\ndef load_data():\n    return [{'x': ROW}]\n"
    assert len(opened(tmp_path, text)) == 1


def test_nothing_is_written_beside_the_script_and_dataclasses_work(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nimport dataclasses\nimport numpy as np\n"
    text += "@dataclasses.dataclass\nclass Row:\n    value: float\n"
    text += "def load_data():\n    yield {'x': np.full((1, 2), Row(3.0).value, np.float32)}\n"
    (tmp_path / "rows.py").write_text(text)
    (batch,) = open_source(DataOptions(path=tmp_path / "rows.py"), [X]).batches(1)
    assert batch.feed["x"].tolist() == [[3.0, 3.0]]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.py"]


def test_digest_is_of_the_feeds(tmp_path: Path) -> None:
    first = opened(tmp_path, FIVE).digest()
    assert opened(tmp_path, "# a comment\n" + FIVE).digest() == first
    assert opened(tmp_path, FIVE.replace("number,", "number + 1,")).digest() != first


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def load_data():\n    return []\n", "yields nothing"),
        ("def load_data():\n    yield {'y': 1}\n", "keys y"),
        ("def load_data():\n    yield np.zeros(3)\n", "ndarray"),
        ("def load_data():\n    yield {'x': np.zeros((1, 3), np.float32)}\n", "[1, 3]"),
        ("def load_data():\n    yield {'x': np.zeros((1, 2))}\n", "float64"),
        ("def load_data():\n    yield {'x': np.full((1, 2), np.inf, np.float32)}\n", "NaN or infinity"),
        ("def load_data():\n    yield {'x': open('/no/such')}\n", "line 3"),
        ("import no_such_module\n", "no_such_module"),
        ("raise SystemExit(2)\n", "SystemExit"),
        ("def load_data(:\n", "SyntaxError"),
    ],
)
def test_scripts_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UnsupportedDataError) as error:
        opened(tmp_path, text)
    assert says in str(error.value)


def test_static_batch_must_be_met(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedDataError, match=r"\[1, 2\]"):
        opened(tmp_path, FIVE, spec=InputSpec("x", np.dtype(np.float32), (1, 2)))


def test_a_later_feed_is_checked_too(tmp_path: Path) -> None:
    source = opened(tmp_path, FIVE + "    yield {'x': np.zeros((1, 3), np.float32)}\n")
    with pytest.raises(UnsupportedDataError, match="feed 5"):
        list(source.batches(1))


def test_a_missing_function_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        opened(tmp_path, FIVE, ":load_dat")
    assert "found: load_data" in str(error.value)


def _specs(**shapes: tuple[int | str | None, ...]) -> list[InputSpec]:
    return [InputSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items()]


@pytest.mark.parametrize(
    ("declared", "fed", "why"),
    [
        ({"a": ("n", 2), "b": ("n", 3)}, [[(2, 2), (2, 3)], [(1, 2), (1, 3)]], ""),
        ({"a": (2, 2), "b": (2, 3)}, [[(2, 2), (2, 3)]], ""),
        ({"a": (1, 2), "b": (2, 3)}, [[(1, 2), (2, 3)]], "axis 0 differs: 1 and 2"),
        ({"a": ("n", 2), "b": (2, 3)}, [[(2, 2), (2, 3)]], "axis 0 differs: n and 2"),
        ({"a": ("n", 2), "b": ("m", 3)}, [[(2, 2), (2, 3)]], "axis 0 differs: n and m"),
        ({"a": (None, 2), "b": (None, 3)}, [[(2, 2), (2, 3)]], "axis 0 has no name that all inputs share"),
        ({"a": (None, 2)}, [[(2, 2)], [(3, 2)]], ""),
        ({"a": ("n", 2), "b": ("n", 3)}, [[(2, 2), (2, 3)], [(1, 2), (4, 3)]], "axis 0 differs: 1 and 4"),
        ({"a": ("n", "t")}, [[(1, 2)], [(1, 4)]], "a differs in size: [1, 2] and [1, 4]"),
        ({"a": (), "b": (1, 3)}, [[(), (1, 3)]], "input 'a' has no axis 0"),
    ],
)  # fmt: skip
def test_feeds_are_joined_only_where_axis_0_is_one_batch(
    declared: dict[str, tuple[int | str | None, ...]], fed: list[list[tuple[int, ...]]], why: str, tmp_path: Path
) -> None:
    feeds = [dict(zip(declared, shapes, strict=True)) for shapes in fed]
    text = f"return [{{k: np.ones(s, np.float32) for k, s in feed.items()}} for feed in {feeds!r}]"
    (tmp_path / "feeds.py").write_text(f"import numpy as np\ndef load_data():\n    {text}\n")
    source = open_source(DataOptions(path=tmp_path / "feeds.py"), _specs(**declared))
    found = source.whole
    assert (found.why, found.count) == (why, len(fed)) if found is not None else not why
    assert [{k: x.shape for k, x in batch.feed.items()} for batch in source.batches(1)] == feeds
