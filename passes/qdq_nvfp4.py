"""Explicit NVFP4 quantisation: FP4 (E2M1) in blocks of 16 along K, each with an FP8 scale under one FP32 number.

    weights       FP4 codes and FP8 block scales, stored so: 4.5 bits a weight; `weights=float` keeps floats before Q/DQ
                  for `qat`
    activations   quantised at run time by `TRT_FP4DynamicQuantize`; calibrated is the number over their block scales,
                  max|x| / (448 * 6). `activations=none`: they stay float

TensorRT refuses static FP4 activations, and gives random output where the number over the scales is left unset.
Attention products and convolutions stay float: NVFP4 is for MatMul and Gemm.

No onnxruntime kernel runs FP4, so the written file is not proven: what is proven, and what `check` runs, is its twin in
ordinary operators (`graph.qdq.simulated`).

Source: TensorRT explicit quantisation; ModelOpt `nvfp4_exporter.py`; `gpusq_onnx.quant.dynamic`. Limits: float32
models, and no `fp16` after it; K a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from gpusq_onnx.calibration.quantising_pass import QuantiseOptions, QuantisingPass
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.simulated import NOTES
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.marks import METADATA
from gpusq_onnx.pipeline.base import Context, Pass, PlanRow
from gpusq_onnx.quant.schemes import SCHEMES, Scheme

MARK = f"{METADATA}not_proven"


class QdqNvfp4Options(QuantiseOptions):
    """Options of `qdq-nvfp4`."""

    observer: Literal["auto", "minmax", "percentile", "mse", "entropy"] = Field(
        default="auto", description="of activation ranges, auto: minmax; a block above it saturates"
    )
    equalise: bool = Field(
        default=False, description="move outlier channels into LayerNorms and weights: blocks do without"
    )
    activations: Literal["dynamic", "none"] = Field(
        default="dynamic", description="FP4 at run time, or float: weight-only"
    )
    rounding: Literal["auto", "nearest"] = Field(default="auto", description="of weights: to the nearest")
    weights: Literal["codes", "float"] = Field(
        default="codes", description="stored as FP4 codes, or as float before Q/DQ"
    )


class QdqNvfp4(QuantisingPass[QdqNvfp4Options]):
    """See the module's text."""

    name = "qdq-nvfp4"
    summary = "explicit NVFP4 quantisation: FP4 in blocks of 16, activations at run time"
    source = "TensorRT explicit quantisation; ModelOpt nvfp4_exporter.py"
    Options = QdqNvfp4Options

    @property
    def scheme(self) -> Scheme:
        scheme = SCHEMES["nvfp4"]
        return scheme if self.options.activations == "dynamic" else replace(scheme, input=None)

    @property
    def stores_codes(self) -> bool:
        return self.options.weights == "codes"

    def follows(self, earlier: Pass[Any]) -> str | None:
        return "takes a float32 model" if "fp16" in earlier.writes().forms else super().follows(earlier)

    def requires(self, model: Model, structure: Structure) -> None:
        super().requires(model, structure)
        other = next((site for site in structure.sites if site.reads_as != np.float32), None)
        if other is not None:
            raise UnsupportedModelError(
                "NVFP4 is written into float32 models",
                where=f"weight {other.name!r}",
                expected="float32",
                found=other.reads_as.name,
                hint="start from the float32 export; TensorRT computes what is around FP4 in the type of the file",
            )

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        super().apply(model, structure, plan, context)
        model.set_metadata({MARK: NOTES["twin"]})
