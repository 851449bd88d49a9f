"""`read`: the same pixels as `batches`, in any order; boxes as RandomResizedCrop cuts them; corrupt images left out."""

import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.prefetch import ahead, stream
from gpusq_onnx.data.source import Batch, Box, InputSpec, Source
from gpusq_onnx.data.subset import at_most
from gpusq_onnx.errors import UnsupportedDataError, UsageError

F32 = np.dtype(np.float32)
SPEC = InputSpec("x", F32, ("batch", 3, 8, 8))
SIDES = st.integers(1, 500)


def folder(root: Path, count: int, side: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        (root / f"c{number % 3}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side + number % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"c{number % 3}" / f"{number:02}.png")
    return root


def everything(source: Source, batch: int = 4) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    batches = list(source.batches(batch))
    labels = [b.labels for b in batches if b.labels is not None]
    indices = [b.indices for b in batches if b.indices is not None]
    rows = np.concatenate([b.feed["x"][: b.size] for b in batches])
    return rows, np.concatenate(labels) if labels else None, np.concatenate(indices)


@pytest.fixture(params=["folder", "npy", "npz", "compressed", "synthetic"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    rows = np.random.default_rng(1).random((11, 3, 8, 8), np.float32)
    labels = np.arange(11) % 4
    (tmp_path / "classes.txt").write_text("c2\nc0\nc1\n")
    if request.param == "folder":
        path = folder(tmp_path / "images", 11)
        return open_source(DataOptions(path=path, classes=tmp_path / "classes.txt", samples=9), [SPEC])
    if request.param == "synthetic":
        return open_source(DataOptions(samples=9), [SPEC])
    if request.param == "npy":
        np.save(tmp_path / "d.npy", rows)
        return open_source(DataOptions(path=tmp_path / "d.npy", samples=9), [SPEC])
    save = np.savez if request.param == "npz" else np.savez_compressed
    save(tmp_path / "d.npz", x=rows, labels=labels)
    return open_source(DataOptions(path=tmp_path / "d.npz", samples=9), [SPEC])


def test_read_gives_what_batches_give(source: Source) -> None:
    rows, labels, indices = everything(source)
    np.testing.assert_array_equal(source.labels, labels)
    assert indices.tolist() == list(range(9)) == list(range(len(source)))
    order = [8, 0, 3, 3, 5]
    for _ in range(2):
        found = source.read(order)
        np.testing.assert_array_equal(found.feed["x"], rows[order])
        assert found.size == 5
        assert found.indices is not None
        assert found.indices.tolist() == order
        assert (found.labels is None) == (labels is None) == (not source.labelled)
        if labels is not None:
            np.testing.assert_array_equal(found.labels, labels[order])


def test_a_fixed_batch_does_not_bind_read(tmp_path: Path) -> None:
    fixed = open_source(DataOptions(path=folder(tmp_path, 7)), [InputSpec("x", F32, (4, 3, 8, 8))])
    assert [len(b.feed["x"]) for b in fixed.batches(2)] == [4, 4]
    assert fixed.read([0, 1, 2, 3, 4, 5, 6]).feed["x"].shape == (7, 3, 8, 8)


def test_boxes_where_there_are_images_only(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros((4, 3, 8, 8), np.float32))
    arrays = open_source(DataOptions(path=tmp_path / "d.npy"), [SPEC])
    assert arrays.random_access and not arrays.croppable
    with pytest.raises(UsageError, match="cannot be cropped"):
        arrays.read([0], [Box()])
    (tmp_path / "d.py").write_text("import numpy as np\ndef load_data():\n    yield {'x': np.zeros((1,3,8,8),'f')}\n")
    script = open_source(DataOptions(path=tmp_path / "d.py"), [SPEC])
    assert not script.random_access
    with pytest.raises(UsageError, match="cannot be read by index"):
        script.read([0])


def test_a_box_is_that_part_of_the_image(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[20:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    options = DataOptions(path=tmp_path, mean=(0.0,), std=(1.0,), interpolation="nearest")
    source = open_source(options, [SPEC])
    assert source.croppable
    corners = [Box(0.25, 1.0, x, y) for y in (0.0, 1.0) for x in (0.0, 1.0)]
    found = source.read([0] * 5, [*corners, Box()]).feed["x"]
    assert found[:4].mean((1, 2, 3)).tolist() == [0, 0, 0, 1]
    assert found[4].mean() == 0.25
    assert found[4, 0, :4].sum() == 0 == found[4, 0, :, :4].sum()


@given(SIDES, SIDES, SIDES, SIDES, st.floats(0.01, 1), st.floats(0.5, 2), st.floats(0, 1), st.floats(0, 1))
def test_boxes_stay_inside_and_keep_area_and_aspect(
    width: int, height: int, wide: int, high: int, area: float, aspect: float, x: float, y: float
) -> None:
    left, top, right, bottom = Box(area, aspect, x, y).pixels((width, height), (wide, high))
    w, h = right - left, bottom - top
    assert -1e-6 <= left < right <= width + 1e-6
    assert -1e-6 <= top < bottom <= height + 1e-6
    if 1.001 < w < width * 0.999 and 1.001 < h < height * 0.999:
        assert w * h == pytest.approx(area * width * height)
        assert w / h == pytest.approx(aspect * wide / high)


def test_corrupt_images_are_left_out_and_the_rest_keeps_its_indices(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", 300, side=8)
    (tmp_path / "classes.txt").write_text("c0\nc1\nc2\n")
    source = open_source(DataOptions(path=root, classes=tmp_path / "classes.txt"), [SPEC])
    rows, labels, _ = everything(source, 50)
    assert labels is not None
    names = [source.name(index) for index in range(300)]
    for index in (7, 250):
        (root / names[index]).write_bytes(b"no image")
    again = open_source(DataOptions(path=root, classes=tmp_path / "classes.txt"), [SPEC])
    found = again.read([6, 7, 8, 250, 0])
    assert (found.size, len(again)) == (3, 300)
    assert found.indices is not None and found.labels is not None
    assert found.indices.tolist() == [6, 8, 0]
    np.testing.assert_array_equal(found.feed["x"], rows[[6, 8, 0]])
    np.testing.assert_array_equal(found.labels, labels[[6, 8, 0]])
    assert again.read([7]).size == 0
    _, _, indices = everything(again, 50)
    assert indices.tolist() == [index for index in range(300) if index not in (7, 250)]
    assert len(again.skipped) == 2


def test_nan_is_refused_by_index_too(tmp_path: Path) -> None:
    rows = np.zeros((5, 3, 8, 8), np.float32)
    rows[3] = np.nan
    np.save(tmp_path / "d.npy", rows)
    source = open_source(DataOptions(path=tmp_path / "d.npy"), [SPEC])
    assert source.read([2, 4]).size == 2
    with pytest.raises(UnsupportedDataError, match="NaN"):
        source.read([2, 3])


def test_a_truncated_file_is_an_error_by_index_too(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros((5, 3, 8, 8), np.float32))
    data = (tmp_path / "d.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(data[:-100])
    with pytest.raises(UnsupportedDataError, match="cannot read"):
        open_source(DataOptions(path=tmp_path / "d.npy"), [SPEC]).read([0])


def test_stream_is_in_order_and_in_the_background(tmp_path: Path) -> None:
    source = open_source(DataOptions(path=folder(tmp_path, 12)), [SPEC])
    requests = [([index, (index * 5) % 12], None) for index in range(12)]
    for workers in (1, 3):
        found = list(stream(source, requests, workers))
        assert [b.indices.tolist() for b in found if b.indices is not None] == [request[0] for request in requests]
    before = threading.active_count()
    running: Iterator[Batch] = stream(source, requests)
    next(running)
    assert threading.active_count() > before
    running.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_goes_wrong_ahead_is_raised_in_its_turn() -> None:
    def divide(number: int) -> float:
        return 1 / number

    found = ahead(divide, [1, 2, 0, 4])
    assert [next(found), next(found)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_work_ahead_waits_for_its_reader() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    found = ahead(lambda number: number, items(), 2)
    assert next(found) == 0
    assert len(asked) <= 4
    assert list(found) == list(range(1, 100))


def test_memory_of_reading_does_not_grow(tmp_path: Path) -> None:
    wide = InputSpec("x", F32, ("batch", 10_000))
    peaks = []
    for count in (16, 400):
        np.savez_compressed(tmp_path / "d.npz", x=np.ones((count, 10_000), np.float32))
        source = open_source(DataOptions(path=tmp_path / "d.npz"), [wide])
        tracemalloc.start()
        for start in range(0, count, 8):
            source.read(range(start, start + 8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_a_subset_is_spread_over_the_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(96, dtype=np.float32).reshape(12, 8), labels=np.arange(12))
    spec = InputSpec("x", F32, (3, 8))
    whole = open_source(DataOptions(path=tmp_path / "d.npz"), [spec])
    assert at_most(whole, 12) is whole
    part = at_most(whole, 4)
    assert part.labels is not None and part.labels.tolist() == [0, 3, 6, 9]
    assert (len(part), part.labelled, part.kind) == (4, True, "arrays")
    batches = list(part.batches(2))
    assert [(b.size, len(b.feed["x"])) for b in batches] == [(3, 3), (1, 3)]
    assert [b.labels.tolist() for b in batches if b.labels is not None] == [[0, 3, 6], [9]]
    assert [b.indices.tolist() for b in batches if b.indices is not None] == [[0, 1, 2], [3]]
    assert part.read([3, 0]).feed["x"][:, 0].tolist() == [72, 0]
    assert part.digest() != whole.digest()
