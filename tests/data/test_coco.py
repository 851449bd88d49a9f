"""Annotated images: which are taken, their ids and sizes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpusq_onnx.data.coco import read_annotations
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.data.subset import at_most
from gpusq_onnx.errors import UnsupportedDataError, UsageError

PIXELS = InputSpec("images", np.dtype(np.float32), ("N", 3, 8, 8))
SIZES = InputSpec("orig_target_sizes", np.dtype(np.int64), ("M", 2))
SHAPES = {7: (16, 8), 3: (8, 24), 5: (10, 10)}  # width, height by id


def reported(**tables: Any) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"a/{i}.png", "width": w, "height": h} for i, (w, h) in SHAPES.items()]
    return {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}], **tables}


@pytest.fixture
def annotated(tmp_path: Path) -> DataOptions:
    """Three annotated images and one that nobody speaks of."""
    (tmp_path / "data" / "a").mkdir(parents=True)
    for i, (w, h) in {**SHAPES, 9: (4, 4)}.items():
        Image.new("RGB", (w, h), (i, i, i)).save(tmp_path / "data" / "a" / f"{i}.png")
    (tmp_path / "boxes.json").write_text(json.dumps(reported()))
    return DataOptions(path=tmp_path / "data", annotations=tmp_path / "boxes.json", fit="stretch", mean=0, std=1)


def rows(source: Source, batch: int) -> dict[int, tuple[int, list[int]]]:
    """Grey level and size by id."""
    found = {}
    for piece in source.batches(batch):
        assert piece.truth is not None
        for row, image in enumerate(piece.truth.tolist()):
            level = round(float(piece.feed["images"][row, 0, 4, 4]) * 255)
            found[image] = level, piece.feed["orig_target_sizes"][row].tolist()
    return found


def test_each_image_comes_with_its_id_and_its_size(annotated: DataOptions) -> None:
    expected = {i: (i, [w, h]) for i, (w, h) in SHAPES.items()}
    source = open_source(annotated, [SIZES, PIXELS])
    assert source.annotations == reported()
    assert rows(source, 2) == expected
    part = rows(at_most(source, 2), 2)
    assert len(part) == 2
    assert part.items() <= expected.items()


def test_a_static_batch_fills_both_inputs(annotated: DataOptions) -> None:
    fixed = InputSpec("images", np.dtype(np.float32), (2, 3, 8, 8))
    last = list(open_source(annotated, [fixed, SIZES]).batches(9))[-1]
    assert last.size == 1
    assert last.feed["images"].shape == (2, 3, 8, 8)
    assert last.feed["orig_target_sizes"].shape == (2, 2)


def test_synthetic_images_have_a_size_too() -> None:
    batch = next(iter(open_source(DataOptions(samples=2), [PIXELS, SIZES]).batches(2)))
    assert batch.feed["orig_target_sizes"].tolist() == [[8, 8], [8, 8]]


def test_stretching_takes_the_whole_image(tmp_path: Path) -> None:
    half = np.zeros((8, 32, 3), np.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(tmp_path / "x.png")
    (whole,) = open_source(DataOptions(path=tmp_path, fit="stretch", mean=0, std=1), [PIXELS]).batches(1)
    assert whole.feed["images"][0, 0, 0, 0] == 0
    assert whole.feed["images"][0, 0, 0, -1] == 1


def test_resize_and_stretch_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="leave resize out"):
        DataOptions.from_values({"fit": "stretch", "resize": 256})


def test_classes_and_annotations_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="different kinds"):
        DataOptions.from_values({"classes": "c.txt", "annotations": "a.json", "fit": "stretch"})


def test_a_crop_would_move_the_boxes() -> None:
    with pytest.raises(UsageError, match="need fit=stretch"):
        DataOptions.from_values({"annotations": "a.json", "fit": "crop"})


def test_annotations_of_no_folder_are_refused(annotated: DataOptions) -> None:
    with pytest.raises(UsageError, match="folder of images"):
        open_source(annotated.model_copy(update={"path": None}), [PIXELS])


def test_an_annotated_image_that_is_not_there_is_named(annotated: DataOptions) -> None:
    assert annotated.path is not None
    (annotated.path / "a" / "3.png").unlink()
    with pytest.raises(UnsupportedDataError, match=r"1 of 3 annotated images(.|\n)*a/3\.png"):
        open_source(annotated, [PIXELS])


def test_annotations_of_nothing_are_refused(annotated: DataOptions) -> None:
    assert annotated.annotations is not None
    annotated.annotations.write_text(json.dumps(reported(images=[])))
    with pytest.raises(UnsupportedDataError, match="name no images"):
        open_source(annotated, [PIXELS])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not COCO"),
        (json.dumps({"images": []}), '"annotations"'),
        (json.dumps(reported(images=[{"id": 1}])), "file_name"),
    ],
)
def test_other_files_are_no_annotations(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UnsupportedDataError, match=words):
        read_annotations(tmp_path / "a.json")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the annotations"):
        read_annotations(tmp_path / "none.json")
