"""Label maps: which images have one, how they lie over the input, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.data.subset import at_most
from gpusq_onnx.errors import UnsupportedDataError, UsageError

PIXELS = InputSpec("images", np.dtype(np.float32), ("N", 3, 8, 8))
FIXED = InputSpec("images", np.dtype(np.float32), (2, 3, 8, 8))


@pytest.fixture
def mapped(tmp_path: Path) -> dict[str, Any]:
    """Images whose red is a class, at 100 + it, their maps, and one image without a map."""
    generator = np.random.default_rng(0)
    for number, (w, h) in enumerate([(16, 24), (40, 8), (9, 9)]):
        # Blocks, so that no interpolation mixes classes away from their edges.
        classes = generator.integers(0, 3, (-(-h // 8), -(-w // 8)), np.uint8).repeat(8, 0).repeat(8, 1)[:h, :w]
        picture = np.stack([100 + classes, 0 * classes, 0 * classes], axis=-1)
        for folder, values in (("images", picture), ("maps", classes)):
            (tmp_path / folder / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / folder / "a" / f"{number}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "unmapped.png")
    return {"path": tmp_path / "images", "masks": tmp_path / "maps", "mean": 0, "std": 1, "interpolation": "nearest"}


def opened(values: dict[str, Any], spec: InputSpec = PIXELS, **more: Any) -> Source:
    return open_source(DataOptions.from_values({**values, **more}), [spec])


@pytest.mark.parametrize("geometry", [{"fit": "stretch"}, {"resize": 10}, {"resize": 8, "crop": 8}])
def test_a_map_lies_over_its_image(mapped: dict[str, Any], geometry: dict[str, Any]) -> None:
    source = opened(mapped, **geometry)
    assert source.segmented
    assert len(source) == 3
    seen = 0
    for piece in source.batches(2):
        assert piece.truth is not None
        assert piece.truth.dtype == np.uint8
        red = np.round(piece.feed["images"][: piece.size, 0] * 255).astype(int)
        np.testing.assert_array_equal(piece.truth, red - 100)
        seen += piece.size
    assert seen == 3
    assert source.notes[0] == "left out 1 image without a label map"


def test_a_static_batch_and_a_subset(mapped: dict[str, Any]) -> None:
    shapes = [np.shape(piece.truth) for piece in opened(mapped, FIXED).batches(9)]
    assert shapes == [(2, 8, 8), (1, 8, 8)]
    part = next(iter(at_most(opened(mapped), 2).batches(9)))
    assert np.shape(part.truth) == (2, 8, 8)
    assert opened(mapped).read([2, 0]).truth is not None


def test_zero_is_no_class(mapped: dict[str, Any]) -> None:
    plain, reduced = (
        next(iter(opened(mapped, fit="stretch", reduce_zero_label=r).batches(9))).truth for r in (False, True)
    )
    assert plain is not None
    assert (plain == 0).any()
    np.testing.assert_array_equal(reduced, np.where(plain == 0, 255, plain.astype(int) - 1))


def test_255_stays_no_class(mapped: dict[str, Any]) -> None:
    for path in (mapped["masks"] / "a").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    assert (next(iter(opened(mapped, reduce_zero_label=True).batches(9))).truth == 255).all()


def test_a_palette_s_indices_are_classes(mapped: dict[str, Any]) -> None:
    plain = next(iter(opened(mapped).batches(9))).truth
    for path in (mapped["masks"] / "a").iterdir():
        image = Image.open(path)
        image.load()
        image.putpalette([9, 9, 9] * 256)
        image.save(path)
        assert Image.open(path).mode == "P"
    np.testing.assert_array_equal(next(iter(opened(mapped).batches(9))).truth, plain)


def test_what_is_refused(mapped: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        opened(mapped, masks=tmp_path / "nowhere")
    with pytest.raises(UnsupportedDataError, match="no image has a label map"):
        opened(mapped, masks=tmp_path)
    with pytest.raises(UsageError, match="labels of different kinds"):
        opened(mapped, classes=tmp_path / "classes.txt")
    with pytest.raises(UsageError, match="reduce_zero_label is about label maps"):
        opened({**mapped, "masks": None}, reduce_zero_label=True)
    with pytest.raises(UsageError, match="--masks goes with a folder"):
        opened(mapped, path=None)
    first = next((mapped["masks"] / "a").iterdir())
    for broken, text in ((Image.new("RGB", (16, 24)), "mode RGB"), (Image.new("L", (3, 3)), "3 x 3")):
        for path in (mapped["masks"] / "a").iterdir():
            broken.save(path)
        with pytest.raises(UnsupportedDataError, match="does not fit its image") as caught:
            list(opened(mapped).batches(9))
        assert text in str(caught.value)
    for path in (mapped["masks"] / "a").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UnsupportedDataError, match="cannot be read") as caught:
        list(opened(mapped).batches(9))
    assert str(first.parent) in str(caught.value)
