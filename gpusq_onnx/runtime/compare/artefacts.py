"""What a comparison ran on and what came out, as Polygraphy's own JSON, so that its command line goes on from there.

    inputs.json               a list of feeds                                  --load-inputs
    outputs.json              the reference's outputs, one iteration a feed    --load-outputs
    compressed_outputs.json   the candidate's                                  --load-outputs

    polygraphy run model.onnx --onnxrt --load-inputs inputs.json --load-outputs outputs.json

The first samples only: arrays in JSON are base64, a third larger than in memory, and Polygraphy reads them whole.
Polygraphy's own onnxruntime runner fuses Q and DQ nodes with their neighbours, so a quantised model deviates there from
its `compressed_outputs.json` by the rounding of single steps.
"""

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES = 16
"""How many samples are kept, rounded up to whole batches."""

INPUTS, OUTPUTS, COMPRESSED = "inputs.json", "outputs.json", "compressed_outputs.json"

_RUNNER = re.compile(rb'"(onnxruntime|tensorrt) ')  # how the names of runners begin, see `Recorder`
_HEAD = 1 << 10  # bytes, in which the first runner's name lies

Arrays = Mapping[str, NDArray[Any]]


class Recorder:
    """Keeps the first batches of a comparison: the `on_batch` of `compare`.

    Args:
        names: what the two runners are called in the files, reference first: "onnxruntime a.onnx".
        outputs: the models' own outputs; what else was tapped is left out.
    """

    def __init__(self, names: tuple[str, str], outputs: Collection[str]) -> None:
        self._names, self._outputs = names, frozenset(outputs)
        self._kept: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
        self._samples = 0

    def __call__(self, feed: Arrays, expected: Arrays, found: Arrays) -> None:
        """Keep a copy of this batch, unless there are enough."""
        if self._samples >= SAMPLES:
            return
        self._kept.append(
            (self._copy(feed, feed), self._copy(expected, self._outputs), self._copy(found, self._outputs))
        )
        self._samples += max((len(array) for array in feed.values() if array.ndim), default=1)

    def _copy(self, arrays: Arrays, wanted: Collection[str]) -> dict[str, Any]:
        return {name: np.array(array) for name, array in arrays.items() if name in wanted}

    def files(self) -> dict[str, str]:
        """The text of each file, by its name."""
        from polygraphy.comparator import IterationResult, RunResults
        from polygraphy.json import to_json

        def results(name: str, side: int) -> str:
            iterations = [IterationResult(batch[side], runtime=0.0, runner_name=name) for batch in self._kept]
            return str(RunResults([(name, iterations)]).to_json())

        return {
            INPUTS: str(to_json([feed for feed, _, _ in self._kept])),
            OUTPUTS: results(self._names[0], 1),
            COMPRESSED: results(self._names[1], 2),
        }


def wrote(path: Path) -> bool:
    """Whether a file is of such a set: the outputs beside it, or itself, come from our runners, not from Polygraphy's.

    Raises OSError where there are no outputs beside it.
    """
    with path.with_name(OUTPUTS).open("rb") as file:
        return bool(_RUNNER.search(file.read(_HEAD)))


def continuation(folder: Path, reference: Path, candidate: Path, *, engine: bool) -> list[str]:
    """The Polygraphy commands that go on from the files in `folder`."""
    backend = ["--model-type", "engine", "--trt"] if engine else ["--onnxrt"]
    sides = (reference, ["--onnxrt"], OUTPUTS), (candidate, backend, COMPRESSED)
    words = [
        ["polygraphy", "run", model, *run, "--load-inputs", folder / INPUTS, "--load-outputs", folder / outputs]
        for model, run, outputs in sides
    ]
    return [shlex.join(map(str, command)) for command in words]
