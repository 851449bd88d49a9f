"""Compress a classifier: python examples/classifier.py MODEL IMAGES OUTPUT

IMAGES is a folder of pictures, or an .npz with an array for each input of the model. Without arguments, the small model
and the digits of the tests are used, and the result goes to the current folder.
"""

import sys
from pathlib import Path

import gpusq_onnx

ASSETS = Path(__file__).parents[1] / "tests" / "assets"


def main(model: str, images: str, output: str) -> None:
    """Look first, compress, compare."""
    passes = "prune24,qdq-int8"
    planned = gpusq_onnx.plan(model, passes)
    print(f"{sum(not row.skipped for row in planned.rows)} of {len(planned.rows)} decisions change something")

    # How an image becomes an input must be what the model was trained with: {"resize": 248, "mean": "0.5,0.5,0.5", ...}
    options = {"samples": 64}
    result = gpusq_onnx.compress(model, passes, data=images, data_options=options, output=output)
    print(result)  # the digest that the command line prints

    found = result.check()  # on the data that it was calibrated with; better: gpusq_onnx.check(..., data="val/")
    print(f"the same best class for {found.comparison.top1_agreement:.1%} of {found.comparison.samples} images")


if __name__ == "__main__":
    main(*sys.argv[1:] or (str(ASSETS / "digits_vit.onnx"), str(ASSETS / "digits_train.npz"), "small.onnx"))
