"""The few SVG shapes that the drawings of docs/ are made of, readable on light and dark pages."""

from html import escape
from itertools import pairwise

STYLE = """\
  <style>
    .page { fill: #ffffff } .band { fill: #f2f4f7 } .box { fill: #ffffff; stroke: #3b5b92; stroke-width: 1.5 }
    .name { font: 600 15px sans-serif; fill: #16213a } .note { font: 12px sans-serif; fill: #4a5568 }
    .big { font: 600 18px sans-serif; fill: #16213a } .arrow { fill: none; stroke: #8a94a6; stroke-width: 1.5 }
    .head { fill: #8a94a6 } .bar { fill: #3b5b92 } .rest { fill: #d8dee9 }
    .curve { fill: none; stroke: #3b5b92; stroke-width: 2.5 } .grid { fill: none; stroke: #d8dee9; stroke-width: 1 }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0f1420 } .band { fill: #182032 } .box { fill: #0f1420; stroke: #7fa2e0 }
      .name, .big { fill: #e8ecf4 } .note { fill: #a9b4c8 } .bar { fill: #7fa2e0 } .rest { fill: #2a3550 }
      .curve { stroke: #7fa2e0 } .grid { stroke: #2a3550 }
    }
  </style>"""
HEAD = '  <defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
HEAD += '<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'


def picture(width: int, height: int, title: str, shapes: list[str]) -> str:
    """A whole SVG file."""
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    first = [f'<svg {box} role="img">', f"  <title>{escape(title)}</title>", STYLE, HEAD]
    return "\n".join([*first, rectangle(0, 0, width, height, "page"), *shapes, "</svg>", ""])


def rectangle(x: float, y: float, width: float, height: float, style: str, corner: float = 6) -> str:
    """A rectangle with round corners."""
    return f'  <rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner:g}"/>'


def text(x: float, y: float, words: str, style: str, anchor: str = "middle") -> str:
    """One line of text; y is its baseline."""
    return f'  <text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def line(points: list[tuple[float, float]], style: str) -> str:
    """A line straight from point to point."""
    return f'  <path class="{style}" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


def arrow(points: list[tuple[float, float]]) -> str:
    """A line through the points, from top to bottom in smooth bends or straight across, with a head at its end."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += f" L{x1:g} {y1:g}" if y0 == y1 or x0 == x1 else f" C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}"
    return f'  <path class="arrow" d="{path}" marker-end="url(#head)"/>'
