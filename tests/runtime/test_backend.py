"""The onnxruntime backend, and the inputs that every backend is timed on."""

import numpy as np
import onnxruntime
import pytest
from runtime_models import linear, tokens

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedModelError, UsageError
from gpusq_onnx.runtime.bench.backend import Variant, random_feed
from gpusq_onnx.runtime.bench.ort import OrtBackend
from gpusq_onnx.runtime.ort import TensorInfo

F32, I64 = np.dtype("float32"), np.dtype("int64")


def test_inputs_are_random_and_the_same_every_time() -> None:
    infos = [
        TensorInfo("x", F32, ("N", 3, 4)),
        TensorInfo("sizes", I64, ("N", 2)),
        TensorInfo("on", np.dtype(bool), ()),
    ]
    feed, again = random_feed(infos, 5, "m"), random_feed(infos, 5, "m")
    assert {name: (value.shape, value.dtype) for name, value in feed.items()} == {
        "x": ((5, 3, 4), F32),
        "sizes": ((5, 2), I64),
        "on": ((), np.dtype(bool)),
    }
    assert np.count_nonzero(feed["x"]) == feed["x"].size and abs(float(feed["x"].mean())) < 0.5
    assert feed["sizes"].min() >= 1
    assert all(np.array_equal(feed[name], again[name]) for name in feed)


def test_ids_are_rows_of_the_tables_that_they_choose_from_and_masks_keep_everything(tmp_path) -> None:
    path = tokens(tmp_path / "m.onnx")
    infos = [TensorInfo(name, I64, ("N", 12)) for name in ("ids", "types", "mask")]
    feed = random_feed([*infos, TensorInfo("pixels", np.dtype("uint8"), ("N", 9))], 8, str(path))
    assert {name: (value.min(), value.max()) for name, value in feed.items() if name != "pixels"} == {
        "ids": (0, 49),
        "types": (0, 1),
        "mask": (1, 1),
    }
    assert len(np.unique(feed["pixels"])) > 9 and feed["pixels"].min() >= 1
    assert OrtBackend().open(Variant(path), 3).measure(1) > 0


def test_an_input_without_the_batch_keeps_its_size() -> None:
    infos = [TensorInfo("x", F32, ("N", 3)), TensorInfo("anchors", F32, (7, 4))]
    assert random_feed(infos, 2, "m")["anchors"].shape == (7, 4)


@pytest.mark.parametrize(("fixed", "batch", "fits"), [(1, 1, True), (8, 8, True), (1, 2, False), (8, 1, False)])
def test_a_fixed_batch_is_respected(fixed: int, batch: int, fits: bool) -> None:
    infos = [TensorInfo("x", F32, (fixed, 3))]
    if fits:
        assert random_feed(infos, batch, "m")["x"].shape == (batch, 3)
        return
    with pytest.raises(UsageError, match=f"batches of {fixed} only"):
        random_feed(infos, batch, "m")


def test_another_dynamic_dimension_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="besides the batch"):
        random_feed([TensorInfo("x", F32, ("N", 3, "height"))], 2, "m")


def test_onnxruntime_on_the_cpu_is_timed(tmp_path) -> None:
    backend = OrtBackend()
    assert backend.require() and not backend.gpu
    runner = backend.open(Variant(linear(tmp_path / "m.onnx")), 3)
    once, often = runner.measure(1), runner.measure(50)
    assert 0 < once < 5 and often > 0
    assert backend.notes() == []


def test_without_a_gpu_the_cuda_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_onnx.runtime.tensorrt.gpu.current", lambda: None)
    with pytest.raises(EnvironmentLacking) as caught:
        OrtBackend(gpu=True).require()
    assert "GPU" in caught.value.details["next"]


def test_without_the_provider_the_cuda_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentLacking, match="pip install onnxruntime-gpu"):
        OrtBackend(gpu=True).require()


@pytest.mark.gpu
def test_onnxruntime_on_a_gpu_is_timed(tmp_path) -> None:
    backend = OrtBackend(gpu=True)
    try:
        backend.require()
    except EnvironmentLacking as error:
        pytest.skip(str(error))
    assert backend.open(Variant(linear(tmp_path / "m.onnx"), "FP32"), 3).measure(10) > 0
