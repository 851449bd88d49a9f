"""docs/images/pipeline.svg: the steps from one ONNX file to the other, and a real model's top-1 after each.

The numbers are those of docs/benchmarks.md (ViT-Tiny/16, 650 ImageNet validation images; means of three seeds where a
step trains); tests/docs/test_generated.py fails where they are not.
"""

from tools.docs.svg import arrow, picture, rectangle, text

STEPS = (  # (pass, what it does, and how, top-1 in %)
    ("model.onnx", "your export", "dense, FP32", 83.5),
    ("prune24", "2:4 by SparseGPT", "128 images", 52.9),
    ("distill", "trained, zeros stay", "1000 images, no labels", 74.6),
    ("qdq-int8", "INT8 as QDQ pairs", "scales from images", 73.6),
    ("qat", "weights and scales", "trained together", 73.8),
)
AFTER = ("check: gates for CI, a TensorRT parser without a GPU", "build: the engine, and which kernels were chosen",
         "pack: 5 bits a weight")  # fmt: skip
WIDTH, HEIGHT, BOX, GAP, LEFT = 960, 330, 160, 26, 28


def drawing() -> str:
    """The whole picture."""
    shapes = [text(WIDTH / 2, 32, "From ONNX to ONNX: ViT-Tiny/16, ImageNet top-1 after each step", "big")]
    for number, (name, what, how, top1) in enumerate(STEPS):
        x = LEFT + number * (BOX + GAP)
        middle = x + BOX / 2
        shapes += [rectangle(x, 54, BOX, 76, "box"), text(middle, 78, name, "name")]
        shapes += [text(middle, 98, what, "note"), text(middle, 117, how, "note")]
        if number:
            shapes.append(arrow([(x - GAP, 92), (x, 92)]))
        high = top1  # 1 px a point
        shapes += [
            rectangle(middle - 34, 172, 68, 100, "rest", 3),
            rectangle(middle - 34, 272 - high, 68, high, "bar", 3),
        ]
        shapes.append(text(middle, 160, f"{top1:.1f} %", "name"))
    shapes.append(text(WIDTH / 2, 308, "  ·  ".join(AFTER), "note"))
    return picture(WIDTH, HEIGHT, "The pipeline, and the top-1 of a real ViT-Tiny after each step", shapes)
