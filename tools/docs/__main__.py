"""Write every generated file of docs/ again: after a change of an option, a preset or an import between areas.

    python -m tools.docs

tests/docs/test_generated.py fails where a committed file is not what this writes.
"""

from pathlib import Path

from tools.docs import curves, house, passes, pipeline, reports

ROOT = Path(__file__).parents[2]
GENERATED = {
    "docs/passes.md": passes.page,
    "docs/reports.md": reports.page,
    "docs/images/house.svg": house.drawing,
    "docs/images/images.svg": curves.drawing,
    "docs/images/pipeline.svg": pipeline.drawing,
}


def main() -> None:
    """Write what is not current."""
    for name, make in GENERATED.items():
        path, text = ROOT / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
