"""Compress in CI and let gates decide: python examples/ci_gates.py; the exit code is CI's answer.

0 all gates met · 1 a gate is not met · 2 to 5 see docs/commands.md
"""

import json
import sys
from pathlib import Path

import gpusq_onnx
from gpusq_onnx import errors

ASSETS = Path(__file__).parents[1] / "tests" / "assets"
GATES = {"max_top1_drop": 10.0, "min_agreement": 0.85}


def main() -> int:
    """Compress, judge on labelled data, keep the report as an artefact of the job."""
    model = ASSETS / "digits_vit.onnx"
    try:
        images = {"data": ASSETS / "digits_train.npz", "data_options": {"samples": 64}}
        result = gpusq_onnx.compress(model, "prune24,qdq-int8", output="small.onnx", **images)
        Path("report.json").write_text(json.dumps(result.report), encoding="utf-8")
        found = result.check(data=ASSETS / "digits_test.npz", gates=GATES)
        print(found)
        found.require()
    except errors.GpusqError as error:
        print(f"{error.title}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
