"""A pass of your own beside ours, without a plug-in: python examples/own_pass.py

The pass rounds weights to a few mantissa bits. It plans one row a tensor and edits what the rows say; copying, checks,
proof and report are the manager's. docs/writing-a-pass.md has the rules, and how to make it a plug-in of `--passes`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

import gpusq_onnx
from gpusq_onnx import Context, Model, Pass, PassOptions, PlanContext, PlanRow
from gpusq_onnx.graph.structure import Structure

ASSETS = Path(__file__).parents[1] / "tests" / "assets"


class RoundOptions(PassOptions):
    """Options of `round-weights`."""

    bits: int = Field(7, ge=1, le=23, description="mantissa bits that stay, as bfloat16 has 7")


class RoundWeights(Pass[RoundOptions]):
    """Round each float32 weight to `bits` of mantissa."""

    name = "round-weights"
    summary = "float32 weights rounded to a few mantissa bits"
    source = "examples/own_pass.py"
    Options = RoundOptions

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        """A row for each weight."""
        return [
            PlanRow(s.name, s.path, s.role, s.op, (s.out, s.k), "round", f"to {self.options.bits} bits")
            for s in structure.sites
        ]

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        """What the rows say."""
        chosen = {row.tensor for row in plan if not row.skipped}
        for site in structure.sites:
            if site.name in chosen:
                mantissa, exponent = np.frexp(site.read())  # mantissa in [0.5, 1)
                scale = 2.0 ** (self.options.bits + 1)
                site.write(np.ldexp(np.round(mantissa * scale) / scale, exponent).astype(np.float32))


def main() -> None:
    """Our pass, then quantisation."""
    passes = [RoundWeights(RoundOptions(bits=5)), "qdq-int8"]
    result = gpusq_onnx.compress(ASSETS / "digits_vit.onnx", passes, data=ASSETS / "digits_train.npz")
    print(result.pipeline)
    print(result.check(gates={"min_agreement": 0.9}).require())


if __name__ == "__main__":
    main()
