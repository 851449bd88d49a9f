import sys
from pathlib import Path

import pytest
from runtime_models import linear, qdq_linear, qlinear_matmul, save

from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.runtime.tensorrt.parser import parser_verdict

SHARED = Path(__file__).resolve().parents[3] / "shared"

FAKE = """
import os, signal, time

__version__ = "11.4.0.106"

class ILogger:
    def __init__(self): pass

class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1

class Builder:
    def __init__(self, logger): {start}
    def create_network(self, flags): return object()

class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): pass
    def parse_from_file(self, path):
        {parse}

def init_libnvinfer_plugins(logger, namespace): pass
"""


@pytest.fixture
def fake_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a `tensorrt` on the import path that does what the test says when it starts and when it parses."""

    def make(*, start: str = "pass", parse: str = "return False") -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "tensorrt.py").write_text(FAKE.format(start=start, parse=parse))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    return make


@pytest.mark.parametrize("build", [False, True])
def test_a_legal_model_is_accepted(tmp_path: Path, harness: Path, build: bool) -> None:
    verdict = parser_verdict(qdq_linear(tmp_path / "m.onnx"), harness=harness, build=build)
    assert (verdict.ok, verdict.errors, verdict.built) == (True, [], build)
    assert verdict.library.startswith("TensorRT")
    assert verdict.seconds > 0


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        ({"zero_point": 3}, ["node q_x (QuantizeLinear)", "Non-zero zero point is not supported"]),
        ({"zero_point": 128, "dtype": "uint8"}, ["node q_x (QuantizeLinear)", "Non-zero zero point"]),
        ({"int32_bias": True}, ["node dq_b (DequantizeLinear)", "input has type Int32"]),
    ],
)
def test_qdq_that_tensorrt_cannot_read_is_refused_in_its_words(
    tmp_path: Path, harness: Path, defect: dict[str, object], words: list[str]
) -> None:
    import numpy as np

    options = {**defect, "dtype": np.dtype(defect.get("dtype", "int8")).type}
    verdict = parser_verdict(qdq_linear(tmp_path / "m.onnx", **options), harness=harness, build=True)
    assert not verdict.ok
    assert not verdict.built
    assert len(verdict.errors) == 1
    assert all(word in verdict.errors[0] for word in words), verdict.errors
    assert "cudaError" not in verdict.errors[0]


def test_an_operator_that_tensorrt_lacks_is_refused_by_name(tmp_path: Path, harness: Path) -> None:
    verdict = parser_verdict(qlinear_matmul(tmp_path / "m.onnx"), harness=harness)
    assert verdict.errors == ["node qmm (QLinearMatMul): UNSUPPORTED_NODE: operator not supported"]
    assert not verdict.ok


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"hello\n", "no graph with outputs"), (b"\x08\x0a\x3a\xff\xff\x7f", "Failed to parse the ONNX model")],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, harness: Path, content: bytes, words: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    verdict = parser_verdict(tmp_path / "m.onnx", harness=harness)
    assert not verdict.ok
    assert words in verdict.errors[0]


def test_dynamic_dimensions_besides_the_batch_need_a_shape_to_build(tmp_path: Path, harness: Path) -> None:
    from onnx import helper

    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, width="W")
    assert parser_verdict(path, harness=harness).ok
    with pytest.raises(UsageError, match=r"input x \[-1, -1\] has dynamic dimensions"):
        parser_verdict(path, harness=harness, build=True)
    with pytest.raises(UsageError, match="no input is named q"):
        parser_verdict(path, harness=harness, build=True, shapes={"q": [1, 8]})
    assert parser_verdict(path, harness=harness, build=True, shapes={"x": [1, 8]}).built


def test_a_model_that_the_builder_refuses_is_told_from_one_that_the_parser_does(tmp_path: Path, harness: Path) -> None:
    from onnx import helper

    path = save(tmp_path / "m.onnx", [helper.make_node("Add", ["x", "c"], ["y"])], {"c": [1.0] * 8}, width="W")
    verdict = parser_verdict(path, harness=harness, build=True, shapes={"x": [1, 5]})
    assert (verdict.ok, verdict.built) == (False, False)
    assert verdict.errors[0].startswith("builder: ")
    assert len(verdict.errors) > 1, "the builder's own log lines say why"


def test_a_real_vision_transformer_is_accepted(harness: Path) -> None:
    model = SHARED / "data" / "vit_tiny_imagenet.onnx"
    if not model.is_file():
        pytest.skip(f"{model} is not here")
    assert parser_verdict(model, harness=harness).ok


@pytest.mark.long
@pytest.mark.parametrize(
    ("parse", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the parser crashed with SIGSEGV"),
        ("print('last words'); os._exit(9)", "the parser ended with status 9"),
        ("return False", "refused the file without naming an error"),
        ("time.sleep(60)", "the parser was stopped after 4 s"),
    ],
)
def test_a_parser_that_dies_has_refused_the_model(tmp_path: Path, fake_tensorrt, parse: str, words: str) -> None:
    fake_tensorrt(parse=parse)
    verdict = parser_verdict(linear(tmp_path / "m.onnx"), timeout=4)
    assert (verdict.ok, verdict.library) == (False, "TensorRT 11.4")
    assert words in verdict.errors[0]
    assert verdict.seconds < 30


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("raise TypeError('factory function returned nullptr')", "TypeError: factory function returned nullptr"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "it crashed with SIGABRT"),
    ],
)
def test_a_tensorrt_that_does_not_start_is_no_verdict(tmp_path: Path, fake_tensorrt, start: str, words: str) -> None:
    fake_tensorrt(start=start)
    with pytest.raises(EnvironmentLacking, match=words) as caught:
        parser_verdict(linear(tmp_path / "m.onnx"))
    assert caught.value.exit_code == 5
    assert "gpusq_onnx.runtime.trt_cpu FOLDER" in str(caught.value)


def test_a_tensorrt_that_does_not_start_gives_way_to_the_harness(tmp_path: Path, fake_tensorrt, harness: Path) -> None:
    fake_tensorrt(start="raise TypeError('no GPU')")
    verdict = parser_verdict(linear(tmp_path / "m.onnx"), harness=harness)
    assert (verdict.ok, verdict.library) == (True, "TensorRT-RTX 1.7 (CPU)")


def test_a_missing_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx"):
        parser_verdict(tmp_path / "nowhere.onnx")
