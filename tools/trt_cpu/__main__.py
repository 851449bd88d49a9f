"""`python -m gpusq_onnx.runtime.trt_cpu FOLDER`: set the harness up and print the folder to put on PYTHONPATH."""

import sys
from pathlib import Path

from gpusq_onnx.errors import GpusqError, UsageError
from gpusq_onnx.runtime.trt_cpu.harness import prepare


def main(arguments: list[str]) -> int:
    """Prepare the harness in the one folder given; returns the exit code."""
    try:
        if len(arguments) != 1:
            raise UsageError("one folder is needed", expected="python -m gpusq_onnx.runtime.trt_cpu FOLDER")
        site = prepare(Path(arguments[0]), progress=lambda step: print(f"trt_cpu: {step}", file=sys.stderr))
    except GpusqError as error:
        print(f"{error.title}: {error}", file=sys.stderr)
        return error.exit_code
    print(site)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
