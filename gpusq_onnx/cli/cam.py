"""`gpusq-onnx cam MODEL... --data images/`: where models look in example images, side by side."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gpusq_onnx.cli.options import STDOUT, DataArgs, Json, Quiet, Seed, require_file
from gpusq_onnx.cli.spare import Known, claim
from gpusq_onnx.files import require_apart, require_place, staged
from gpusq_onnx.marks import in_page, in_picture

_PICTURE = re.compile(r"\d{2,}-.*\.jpg")  # see `report.page.gallery.pictures`
_look = partial(Option, rich_help_panel="How to look", show_default=False)


@dataclass(frozen=True)
class MapArgs:
    """Which maps are drawn, and of how many images."""

    method: Annotated[
        str | None,
        _look("--method", metavar="A,B", help="gradcam, rollout. Default: both, where attention allows."),
    ] = None
    layer: Annotated[
        str | None, _look("--layer", metavar="TENSOR", help="Take Grad-CAM here. Default: the last norm's output.")
    ] = None
    show: Annotated[
        int,
        Option(
            "--show", metavar="N", min=1, rich_help_panel="How to look", help="Examples: half agree least, half best."
        ),
    ] = 6

    @property
    def methods(self) -> list[str]:
        """As the library takes them."""
        return [name.strip() for name in (self.method or "").split(",") if name.strip()]


def cam(
    models: Annotated[
        list[Path],
        Argument(metavar="MODEL...", help="The first is what others are compared with.", show_default=False),
    ],
    data: DataArgs,
    look: MapArgs,
    output: Annotated[
        str | None,
        Option(
            "--output",
            "-o",
            metavar="PATH",
            show_default=False,
            help="FILE.html, .png, .svg or .pdf, or a folder, DIR/. Default: MODEL.cam.html beside the first model.",
        ),
    ] = None,
    seed: Seed = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Draw where models look: class activation maps and attention, side by side, with what each model sees."""
    from gpusq_onnx.cli.console import show, show_sheet, warn, write_json
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.workflows.cam import cam as explain
    from gpusq_onnx.workflows.cam import draw, place_of, require_libraries

    require_libraries()
    require_file(output, "what is drawn")
    written = place_of(output) if output else models[0].with_suffix(".cam.html")
    require_place(written if written.suffix else written / "index.html", "the pictures")
    require_apart(written, models, "the pictures would overwrite a model")
    claim(models, _places(written), json=json)
    with open_progress(quiet=quiet) as progress:
        found = explain(
            *models,
            data=data.options(seed),
            methods=look.methods,
            layer=look.layer,
            progress=progress,
        )
    for text in (*found.warnings, *found.notes):
        warn(text)
    with staged() as results:
        files = draw(found, output or written, look.show, results)
        if json:
            write_json({**found.to_dict(), "written": [str(file) for file in files]}, json, results)
    if quiet or json == STDOUT:
        return
    show_sheet(found.sheet(), "--json FILE")
    more = f" and {len(files) - 1} pictures beside it" if len(files) > 1 else ""
    show(f"\n{files[0]}{more}")


def _places(written: Path) -> dict[Path, Known]:
    """The files that may be written; of a folder, its page and whatever lies there and has a picture's name."""
    from gpusq_onnx.report.page.gallery import FORMATS
    from gpusq_onnx.workflows.cam import PAGES

    if written.suffix.lower() in FORMATS:
        return {written: in_picture}
    if written.suffix.lower() in PAGES:
        return {written: in_page}
    there = written.iterdir() if written.is_dir() else ()
    pictures = [path for path in there if _PICTURE.fullmatch(path.name)]
    return {written / "index.html": in_page, **dict.fromkeys(pictures, in_picture)}
