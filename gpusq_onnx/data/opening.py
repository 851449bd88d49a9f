"""The registry of readers: which one a path is for, or what is made up where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gpusq_onnx.data.listing import shards
from gpusq_onnx.data.options import CROPPED_BOXES, DataOptions
from gpusq_onnx.data.source import SIZES, Described, InputSpec, Source, image_inputs
from gpusq_onnx.errors import UsageError

_IMAGE_AXES = 4  # batch, channels, height, width


def open_source(
    options: DataOptions, inputs: Sequence[Described], rows: Callable[[], Mapping[str, int]] = dict
) -> Source:
    """The source that `options.path` names, checked against the model's inputs as far as this is cheap.

    Without a path, images are made up; where the inputs are not one image, tensors, with integers below what `rows`
    gives (`graph.id_ranges`).

    A missing path raises UsageError; data that does not fit the inputs raises UnsupportedDataError.
    """
    if options.annotations is not None and options.fit != "stretch":
        raise UsageError(CROPPED_BOXES, where="--annotations", hint="give --fit stretch")
    source = _open(options, [InputSpec(given.name, given.dtype, given.shape) for given in inputs], rows)
    for option, asked, met in (
        ("--annotations", options.annotations, source.annotations is not None),
        ("--masks", options.masks, source.segmented),
    ):
        if asked is not None and not met:
            raise UsageError(f"{option} goes with a folder of images", where="--data", found=f"{source.kind} data")
    return source


def _open(options: DataOptions, inputs: Sequence[InputSpec], rows: Callable[[], Mapping[str, int]]) -> Source:
    # Each kind is imported when it is needed: Pillow has no place in the start-up time of `plan`.
    if options.path is None and not _one_image(inputs):
        from gpusq_onnx.data.synthetic_tensors import SyntheticTensors

        return SyntheticTensors(options, inputs, rows())
    if options.path is None:
        from gpusq_onnx.data.synthetic import SyntheticImages

        return SyntheticImages(options, image_inputs(inputs, "synthetic images"))
    function = str(options.path).partition(".py:")[2]
    path = options.path if not function else options.path.with_name(options.path.name.rpartition(":")[0])
    if not path.exists():
        raise UsageError(f"data not found: {options.path}", where="--data", hint="check the path")
    if not path.is_dir() and not path.is_file():
        raise UsageError(f"{options.path} is a device or a pipe", where="--data", hint="name a file or a folder")
    if shards(path, ".parquet"):
        from gpusq_onnx.data.parquet import ParquetImages

        return ParquetImages(path, options, image_inputs(inputs, f"the Parquet data {options.path}"))
    if shards(path, ".tar"):
        from gpusq_onnx.data.webdataset import WebDataset

        return WebDataset(path, options, image_inputs(inputs, f"the shards {options.path}"))
    if path.is_dir():
        from gpusq_onnx.data.folder import ImageFolder

        return ImageFolder(path, options, image_inputs(inputs, f"the folder {options.path}"))
    if path.suffix in (".npy", ".npz"):
        from gpusq_onnx.data.arrays import ArrayFile

        return ArrayFile(path, options, inputs)
    if path.suffix == ".py":
        from gpusq_onnx.data.script import ScriptSource

        return ScriptSource(path, function or "load_data", options, inputs)
    raise UsageError(
        f"cannot tell what kind of data {options.path} is",
        where="--data",
        expected="a folder of images, .parquet, .tar, .npy, .npz, or a Polygraphy script (FILE.py or FILE.py:function)",
    )


def _one_image(inputs: Sequence[InputSpec]) -> bool:
    """Whether images alone can feed the model: its other inputs, if any, tell their sizes."""
    others = [spec for spec in inputs if spec.name != SIZES]
    return len(others) == 1 and len(others[0].shape) == _IMAGE_AXES and others[0].dtype.kind in "fVu"
