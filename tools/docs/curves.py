"""docs/images/images.svg: what 32, 128 and 1000 unlabelled images give a ViT-Tiny whose weights become 2:4.

The numbers are those of docs/benchmarks.md, "How many images to train on"; tests/docs/test_generated.py fails where
they are not.
"""

from math import log10

from tools.docs.svg import line, picture, text

DENSE = 83.5
CURVES = (  # (what, where that is written: from the second point, top-1 in % by number of images)
    ("trained without labels, as many steps each", (24, -36), {32: 62.3, 128: 68.5, 1000: 74.3}),
    ("one-shot", (16, 22), {32: 41.2, 128: 56.8, 1000: 65.9}),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 80, 660, 70, 310
LOWEST, HIGHEST, STEP = 40, 90, 10


def drawing() -> str:
    """The whole picture."""
    shapes = [text(WIDTH / 2, 32, "2:4, ViT-Tiny/16: ImageNet top-1 by the number of images", "big")]
    for percent in range(LOWEST, HIGHEST + 1, STEP):
        shapes += [line([(LEFT, _y(percent)), (RIGHT, _y(percent))], "grid")]
        shapes += [text(LEFT - 10, _y(percent) + 4, f"{percent} %", "note", "end")]
    shapes += [
        line([(LEFT, _y(DENSE)), (RIGHT, _y(DENSE))], "arrow"),
        text(LEFT + 8, _y(DENSE) - 6, "dense", "note", "start"),
    ]
    for what, (right, down), points in CURVES:
        places = [(_x(images), _y(top1)) for images, top1 in points.items()]
        shapes.append(line(places, "curve"))
        shapes += [text(x, y - 10, f"{top1:.1f}", "name") for (x, y), top1 in zip(places, points.values(), strict=True)]
        x, y = places[1]
        shapes.append(text(x + right, y + down, what, "note", "start"))
    shapes += [text(_x(images), BOTTOM + 24, f"{images}", "name") for images in CURVES[0][-1]]
    shapes.append(text((LEFT + RIGHT) / 2, BOTTOM + 50, "unlabelled training images", "note"))
    return picture(WIDTH, HEIGHT, "Top-1 of a 2:4 ViT-Tiny by the number of images, one-shot and trained", shapes)


def _x(images: int) -> float:
    return LEFT + 40 + (log10(images) - log10(32)) / (3 - log10(32)) * (RIGHT - LEFT - 80)


def _y(percent: float) -> float:
    return BOTTOM - (percent - LOWEST) / (HIGHEST - LOWEST) * (BOTTOM - TOP)
