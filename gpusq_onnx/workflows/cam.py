"""`cam`: where models look, side by side: activation maps and attention on example images, with their predictions.

The first model decides what is explained in each image: its best class, its best queries, the class that fills most
pixels; the other models are asked for the same. One map answers one question that way, and maps can be compared.

Written is one page (.html), one picture (.png, .svg, .pdf), or a folder of pictures with the page as index.html.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data import encode, remembered
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import SIZES, Batch, Source
from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError, UsageError
from gpusq_onnx.files import Staging, into
from gpusq_onnx.graph import io
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import spelled_out
from gpusq_onnx.pipeline.doubts import doubts
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.page import gallery
from gpusq_onnx.report.page.activation import Activations, ActivationView, Example, agreement
from gpusq_onnx.report.page.html import require_page
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.tasks.kinds import image_shape
from gpusq_onnx.wording import in_callers_words, worded
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.models import AnyModel, as_file, name_of
from gpusq_onnx.workflows.outlines import Outline, Outlines, over
from gpusq_onnx.workflows.outlines import agreement as shared
from gpusq_onnx.workflows.samples import AnyData, AnyOptions

if TYPE_CHECKING:
    from gpusq_onnx.torchgraph.activation import Explainer, Explanation

IMAGES = 16  # looked at by default
SHOWN = 6
PAGES = (".html", ".htm")
QUERIES = 2  # of an image of a detector
_SIDE = 160  # px; smaller images are enlarged


@worded
def cam(
    *models: AnyModel,
    data: AnyData = None,
    data_options: AnyOptions = None,
    methods: Sequence[str] = (),
    layer: str | None = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> Activations:
    """Explain images with several models; the others are compared with the first.

    Args:
        models: paths or models in memory, such as a dense one, its sparse and its quantised form.
        data, data_options: see `workflows.samples`; 16 images unless `samples` says otherwise.
        methods: "gradcam", "rollout"; none: Grad-CAM, and roll-out where attention allows it.
        layer: the tensor that Grad-CAM is taken from; None: the last normalisation's output that has positions.

    Raises:
        UsageError: no model, no data, an unknown method, no tensor of the layer's name.
        UnsupportedModelError: no image input, no class logits, no layer, or an operator that cannot be converted.
        UnsupportedDataError: the data does not fit, or is empty.
        EnvironmentLacking: torch (extra `train`) is not installed.
    """
    from gpusq_onnx.torchgraph.activation import METHODS

    wrong = [name for name in methods if name not in METHODS]
    if not models or wrong:
        what = f"there is no method {wrong[0]!r}" if wrong else "no model is given"
        raise UsageError(what, where="--method" if wrong else None, expected=f"one of {', '.join(METHODS)}")
    with ExitStack() as open_files:
        paths = [open_files.enter_context(as_file(model)) for model in models]
        options = open_files.enter_context(samples.opened(models[0], data, data_options, seed))
        if options.path is None:
            raise UsageError("maps are drawn on example images", hint="give --data, a folder of images")
        loaded = [spelled_out(io.load(path)) for path in paths]
        names = tuple(map(name_of, models))
        return explained(names, paths, loaded, options, methods=methods, layer=layer, progress=progress)


def explained(
    names: tuple[str, ...],
    paths: Sequence[Path],
    loaded: Sequence[Model],
    options: DataOptions,
    *,
    methods: Sequence[str] = (),
    layer: str | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> Activations:
    """The same of models that are loaded, in ONNX's own operators, from files that are there; they are not changed.

    Raises:
        UsageError, UnsupportedModelError, UnsupportedDataError, EnvironmentLacking: as `cam`.
    """
    from gpusq_onnx.torchgraph.activation import Explainer

    if options.samples is None:
        options = options.model_copy(update={"samples": IMAGES})
    settled = remembered.settle(options, [model.metadata for model in loaded], paths[0].parent)
    source = open_source(settled.options, loaded[0].inputs())
    doubted = doubts(partial(Session, paths[0]), source) if settled.guessed else []
    explainers: list[Explainer] = []
    outlines = [Outlines(path, model, source.input_size) for path, model in zip(paths, loaded, strict=True)]
    progress.start("converting", len(loaded))
    for path, model in zip(paths, loaded, strict=True):
        with blaming(path):
            explainers.append(Explainer(model, _image_of(model), sizes=SIZES, methods=methods, layer=layer))
        progress.advance()
    progress.start("looking", len(source))
    examples: list[Example] = []
    classes = _class_names(settled.options)
    described = source.describe()
    for batch, row in _rows(source):
        feed = {name: rows[row : row + 1] for name, rows in batch.feed.items()}
        looks = _looks(explainers, outlines, feed)
        pixels = encode.shown(feed[_image_of(loaded[0])][0], described.get("preprocess"))
        examples += _examples(looks, encode.at_least(pixels, _SIDE), batch, row, source, classes)
        progress.advance()
    progress.finish()
    if not examples:
        raise UnsupportedDataError("the data is empty", hint="point --data at a folder with images")
    return Activations(
        names,
        tuple(explainer.layer for explainer in explainers),
        tuple(sorted(examples, key=lambda example: example.agreement)),
        settled.describe(source),
        in_callers_words((*settled.warnings, *doubted)),
        tuple(source.notes),
    )


def draw(
    found: Activations, output: str | os.PathLike[str], show: int = SHOWN, results: Staging | None = None
) -> list[Path]:
    """Write the pictures; returns what was written, the page or picture first.

    Args:
        output: FILE.html, FILE.png, .svg or .pdf, or a folder, which need not exist.
        show: how many examples, of which half agree least and half best.
        results: draw into them; None: all is at its place, whole, when this returns.

    Raises:
        EnvironmentLacking: the extra `report` is not installed.
        UsageError: a file of another kind.
        OSError: the place cannot be written; nothing is left.
    """
    require_page()
    path, few = place_of(output), replace(found, examples=tuple(found.chosen(show)))
    suffix = path.suffix.lower()
    if suffix in gallery.FORMATS:
        contents = {path: gallery.picture(few, suffix)}
    elif suffix in PAGES:
        contents = {path: gallery.page(found, few).encode()}
    else:
        contents = {path / "index.html": gallery.page(found, few).encode()}
        contents |= {path / name: content for name, content in gallery.pictures(few).items()}
    with into(results) as staging:
        for file, content in contents.items():
            staging.place(file).write_bytes(content)
    return list(contents)


def place_of(output: str | os.PathLike[str]) -> Path:
    """Where pictures go. Raises UsageError for a suffix of no kind; a folder that is new and has one ends with `/`."""
    path, text = Path(output), os.fspath(output)
    if path.suffix.lower() in ("", *PAGES, *gallery.FORMATS) or path.is_dir() or text.endswith(("/", os.sep)):
        return path
    raise UsageError(
        f"pictures are not written as {path.suffix!r}",
        where=f"-o {text}",
        expected="FILE.html, .png, .svg or .pdf, or a folder",
        hint=f"for a folder of that name, -o {text}/",
    )


def require_libraries() -> None:
    """Raises EnvironmentLacking unless what looks into models and what draws are installed."""
    missing = [name for name in ("torch", "jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        extras = ",".join([*(["report"] if missing != ["torch"] else []), *(["train"] if "torch" in missing else [])])
        what = f"maps need {' and '.join(missing)}"
        raise EnvironmentLacking(what, hint=f"pip install 'gpusq-onnx[{extras}]'")


def _image_of(model: Model) -> str:
    """The name of the model's image input."""
    shape = image_shape(spec.shape for spec in model.inputs())
    if not shape:
        what = "maps are drawn over images, and the model takes none"
        found = "; ".join(f"{spec.name} {list(spec.shape)}" for spec in model.inputs())
        raise UnsupportedModelError(what, expected="[B, C, H, W] or [B, H, W, C]", found=found or "no inputs")
    return next(spec.name for spec in model.inputs() if spec.shape == shape)


def _class_names(options: DataOptions) -> list[str]:
    return [] if options.classes is None else options.classes.read_text(encoding="utf-8").splitlines()


def _rows(source: Source) -> Iterator[tuple[Batch, int]]:
    for batch in source.batches(1):
        yield from ((batch, row) for row in range(batch.size))


def _looks(
    explainers: Sequence[Explainer], outlines: Sequence[Outlines], feed: Mapping[str, NDArray[Any]]
) -> list[list[tuple[Explanation, Outline | None]]]:
    """What each model sees in one image, subject by subject."""
    first = explainers[0].explain(feed, most=QUERIES)
    asked = [look.seen for look in first if look.seen is not None]
    looks = [first, *(explainer.explain(feed, asked) for explainer in explainers[1:])]
    found = []
    for own, objects in zip(looks, outlines, strict=True):
        edges = objects.find(feed, [look.seen.box if look.seen else None for look in own])
        found.append(list(zip(own, edges, strict=True)))
    return found


def _examples(
    looks: Sequence[Sequence[tuple[Explanation, Outline | None]]],
    pixels: encode.Pixels,
    batch: Batch,
    row: int,
    source: Source,
    classes: Sequence[str],
) -> Iterator[Example]:
    """One image: an example for each subject."""
    name = source.name(int(batch.indices[row])) if batch.indices is not None else "sample"
    truth = "" if batch.labels is None else _called(int(batch.labels[row]), classes)
    for number, subject in enumerate(zip(*looks, strict=True)):
        views: list[ActivationView] = []
        for look, edge in subject:
            views.append(_view(look, over(edge, pixels.shape[:2]), views[0] if views else None, pixels, classes))
        yield Example(name if len(looks[0]) == 1 else f"{name}, query {number + 1}", truth, pixels, tuple(views))


def _view(
    look: Explanation,
    outline: Outline | None,
    first: ActivationView | None,
    pixels: encode.Pixels,
    classes: Sequence[str],
) -> ActivationView:
    maps = _whole(look.maps, pixels)
    others = maps if first is None else first.maps
    agreed = {name: agreement(maps[name], others[name]) for name in maps if name in others}
    edge = outline if first is None else first.outline
    if outline is not None and edge is not None:
        agreed["mask"] = shared(outline, edge)
    seen = look.seen
    if seen is None:
        return ActivationView("", 0.0, True, maps, agreed)
    mask = None
    if seen.mask is not None:
        mask = np.rint(encode.enlarged(seen.mask, pixels.shape[:2], smooth=False)).astype(np.int64)
    label = _called(seen.label, classes)
    same = first is None or label == first.label
    return ActivationView(label, seen.probability, same, maps, agreed, seen.box, mask, outline)


def _whole(maps: dict[str, NDArray[np.float32]], pixels: encode.Pixels) -> dict[str, NDArray[np.float32]]:
    """The maps over the image's pixels."""
    return {name: encode.enlarged(values, pixels.shape[:2]) for name, values in maps.items()}


def _called(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) and classes[label].strip() else f"class {label}"
