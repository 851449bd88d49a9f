from pathlib import Path

import numpy as np
import pytest
from runtime_models import INPUT, linear, qdq_add, two_outputs, weight

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError, UsageError
from gpusq_onnx.runtime.ort import Session


def samples(n: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((n, INPUT)).astype(np.float32)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_runs_a_model_and_tells_its_inputs(tmp_path: Path, as_bytes: bool) -> None:
    path = linear(tmp_path / "m.onnx")
    session = Session(path.read_bytes() if as_bytes else path)
    assert [tuple(info) for info in session.inputs()] == [("x", np.dtype("float32"), ("N", INPUT))]
    x = samples(5)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight(), rtol=1e-5, atol=1e-5)


def test_returns_only_the_outputs_asked_for(tmp_path: Path) -> None:
    session = Session(two_outputs(tmp_path / "m.onnx", 2.0))
    assert list(session.run({"x": samples(2)}, ["z"])) == ["z"]
    assert list(session.run({"x": samples(2)})) == ["y", "z"]


def rounded(values: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(values / np.float32(scale)), -128, 127).astype(np.float32) * np.float32(scale)


def test_exact_qdq_is_the_onnx_operators_arithmetic(tmp_path: Path) -> None:
    """onnxruntime 1.31 makes a QLinearAdd of this, which is a whole step off where the sum is near a tie."""
    path, (w, v) = qdq_add(tmp_path / "q.onnx"), (weight(0), weight(3))
    x = samples(256)
    expected = rounded(rounded(x @ w, 0.03) + rounded(x @ v, 0.07), 0.1)
    steps = np.abs(Session(path, exact_qdq=True).run({"x": x})["y"] - expected) / 0.1
    # a BLAS that adds in another order than numpy's may move a value over a tie; the fused kernel moves 10 in a hundred
    assert (steps > 0.5).mean() < 0.001


@pytest.mark.parametrize(("batch", "fixed"), [(4, 4), ("N", None)])
def test_knows_whether_the_batch_is_fixed(tmp_path: Path, batch: int | str, fixed: int | None) -> None:
    assert Session(linear(tmp_path / "m.onnx", batch=batch)).fixed_batch == fixed


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx"):
        Session(tmp_path / "nowhere.onnx")


def test_a_file_that_is_no_model_is_refused_with_onnxruntimes_words(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_text("hello\n")
    with pytest.raises(UnsupportedModelError, match=r"(?s)junk\.onnx.*Protobuf parsing failed"):
        Session(tmp_path / "junk.onnx")


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"z": samples(1)}, "expected: x"),
        ({"x": samples(1), "z": samples(1)}, "found: x, z"),
        ({"x": np.zeros((4, 3), np.float32)}, "Got: 3 Expected: 16"),
        ({"x": samples(1).astype(np.float64)}, r"expected: \(tensor\(float\)\)"),
        ({"x": np.zeros((5, INPUT), np.float32)}, "Got: 5 Expected: 4"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, feed: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(UnsupportedDataError, match=words):
        Session(linear(tmp_path / "m.onnx", batch=4)).run(feed)


def test_an_absent_provider_is_an_error_and_not_a_fall_back(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacking, match="NoSuchExecutionProvider"):
        Session(linear(tmp_path / "m.onnx"), provider="NoSuchExecutionProvider")
