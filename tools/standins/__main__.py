"""Measured accuracy for the paper's other systems, on small models that are trained here; one command, resumable.

    python -m tools.standins [--only swin] [--exporter dynamo] [--part held] [--data ../shared/data/cifar10]
                             [--folder .zoo/standins] [--out out/standins]

    swin      Swin, two stages, on CIFAR-10: top-1
    detr      a DETR with masks on scenes of digits: AP of boxes and of masks
    upernet   UPerNet on Swin on the same scenes: mean IoU

Each is trained, exported by both exporters, compressed to INT8 2:4 and INT4 4:8 with distillation and learned scales,
and scored by `check` before and after. What is made lies in --folder (default: standins below GPUSQ_ZOO, or .zoo), and
is not made again; table.md and table.json are written to --out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from tools.standins.report import rows, verdicts
from tools.standins.runs import EXPORTERS, Desk
from tools.standins.systems import FORMS, SYSTEMS, Size
from tools.zoo.exports import Zoo, shared_folder


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.standins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(SYSTEMS), help="repeatable")
    parser.add_argument("--exporter", action="append", choices=EXPORTERS, help="repeatable")
    parser.add_argument("--part", choices=("held", "test"), default="test", help="what is scored; held: for choosing")
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "cifar10")
    parser.add_argument("--folder", type=Path, default=Zoo.default().folder / "standins")
    parser.add_argument("--out", type=Path, default=Path("out/standins"))
    for option in fields(Size):
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default)
    args = parser.parse_args()
    desk = Desk(args.data, args.folder, Size(**{option.name: getattr(args, option.name) for option in fields(Size)}))
    results = []
    for name in args.only or SYSTEMS:
        for exporter in args.exporter or EXPORTERS:
            for form in FORMS:
                results.append(desk.result(name, exporter, form, args.part))
                lines = [*rows(results), "", *verdicts(results)]
                args.out.mkdir(parents=True, exist_ok=True)
                (args.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
                (args.out / "table.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
