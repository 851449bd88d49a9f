"""A TensorRT engine as one side of a comparison: read from a file, or built from an ONNX file on the spot.

`builder` builds it (sparse weights on, TF32 off), Polygraphy loads it (`EngineFromBytes`) and runs it (`TrtRunner`).
Nothing here falls back to anything else: without TensorRT 10 or newer, or a GPU, the error says what to install.

Limits: of a plan's optimisation profiles one is used, the first that takes batch 1, else the first. A plan shows only
its outputs; inner tensors must have been outputs when it was built, which also changes what TensorRT fuses.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UsageError
from gpusq_onnx.graph.io import file_digest
from gpusq_onnx.graph.model import TensorSpec
from gpusq_onnx.runtime.ort import Feed, Infer, Session, TensorInfo, fixed_batch
from gpusq_onnx.runtime.tensorrt.engine import build_engine
from gpusq_onnx.runtime.tensorrt.library import Library, find_library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import Bounds, make_profiles, opens_batch
from gpusq_onnx.scratch import Scratch

SUFFIXES = (".plan", ".engine", ".trt")
"""What engine files are called; anything else is read as ONNX."""


class Engine:
    """A deserialised engine, with the face of `ort.Session`.

    Args:
        plan: the serialised engine.
        name: what errors call it.

    Raises:
        EnvironmentLacking: no TensorRT, no GPU, or an engine that this TensorRT or this GPU cannot load.
    """

    def __init__(self, plan: bytes, name: str) -> None:
        library = require_tensorrt()
        from polygraphy.backend.trt import engine_from_bytes
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        self.name = name
        try:
            with G_LOGGER.verbosity(G_LOGGER.ERROR):  # more than errors would mix with the results on stdout
                self._engine = engine_from_bytes(plan)
        except PolygraphyException as error:
            raise EnvironmentLacking(
                "this TensorRT cannot load the engine",
                where=name,
                found=f"{library.name}: {error}",
                hint="build it again, with this TensorRT on this GPU",
            ) from error
        self._profile = self._choose_profile()

    @classmethod
    def load(cls, path: Path) -> "Engine":
        """The engine in a file. Raises as the class does, and UsageError where there is no such file."""
        if not path.is_file():
            raise UsageError("the engine file does not exist", where=str(path))
        return cls(path.read_bytes(), str(path))

    def inputs(self) -> list[TensorInfo]:
        """The inputs, in the engine's order; axis 0 is a size where the profile leaves it no choice."""
        return self._tensors("INPUT")

    def outputs(self) -> list[TensorInfo]:
        """The outputs, in the engine's order."""
        return self._tensors("OUTPUT")

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the engine, or its profile, has fixed; None where it is free."""
        return fixed_batch(self.inputs())

    @property
    def max_batch(self) -> int | None:
        """The largest batch of the profile."""
        return min((largest for _, largest in self._range(self._profile)), default=None)

    @contextmanager
    def opened(self) -> Iterator[Infer]:
        """A function that runs the engine on the GPU while the block lasts; outputs are valid until the next call."""
        from polygraphy.backend.trt import TrtRunner
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        quiet = G_LOGGER.verbosity(G_LOGGER.ERROR)
        with quiet, TrtRunner(self._engine, optimization_profile=self._profile) as runner:

            def infer(feed: Feed) -> Mapping[str, NDArray[Any]]:
                try:
                    return runner.infer(dict(feed))  # type: ignore[no-any-return]
                except PolygraphyException as error:
                    raise UnsupportedDataError(
                        "the data does not fit the engine", where=self.name, found=str(error)
                    ) from error

            yield infer

    def _names(self, mode: str) -> list[str]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name).name == mode]

    def _tensors(self, mode: str) -> list[TensorInfo]:
        from tensorrt import nptype

        kinds = {name: np.dtype(nptype(self._engine.get_tensor_dtype(name))) for name in self._names(mode)}
        return [TensorInfo(name, kind, self._shape(name)) for name, kind in kinds.items()]

    def _shape(self, name: str) -> tuple[int | None, ...]:
        shape = [None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name)]
        sizes = {size for bounds in self._range(self._profile) for size in bounds}
        if shape and shape[0] is None and len(sizes) == 1:
            shape[0] = sizes.pop()
        return tuple(shape)

    def _range(self, profile: int) -> list[tuple[int, int]]:
        """Least and largest batch of every input whose batch the profile sets."""
        found = []
        for name in self._names("INPUT"):
            shape = self._engine.get_tensor_shape(name)
            if len(shape) and shape[0] < 0:
                least, _, largest = self._engine.get_tensor_profile_shape(name, profile)
                found.append((int(least[0]), int(largest[0])))
        return found

    def _choose_profile(self) -> int:
        count = int(self._engine.num_optimization_profiles)
        takes_one = (index for index in range(count) if all(least == 1 for least, _ in self._range(index)))
        return next(takes_one, 0)


def built(path: Path, name: str, batch: int) -> Engine:
    """An engine of the ONNX file at `path` for batches of 1 to `batch`, tuned for `batch`.

    Raises:
        EnvironmentLacking: as `require_tensorrt`.
        UnsupportedModelError: TensorRT refuses the model.
        UsageError: inputs are dynamic in more than the batch.
    """
    specs = [TensorSpec(*info) for info in Session(path).inputs()]
    batches = [Bounds((1,), (batch,), (batch,))] if opens_batch(specs) else []
    options = BuildOptions(make_profiles(specs, batches), tf32=False)
    with Scratch() as folder:
        plan = folder / "model.plan"
        build_engine(path, file_digest(path), plan, options, require_tensorrt()).require(Path(name))
        return Engine(plan.read_bytes(), name)


def require_tensorrt(otherwise: str = "leave --on out, and compare the ONNX files on the CPU") -> Library:
    """The TensorRT here, and a GPU for it.

    Args:
        otherwise: what a caller without them can do.

    Raises:
        EnvironmentLacking: one of the two is missing, does not start or is too old; with what to install.
    """
    try:
        return find_library()
    except EnvironmentLacking as error:
        raise EnvironmentLacking(
            error.what,
            expected=error.details["expected"],
            found=error.details["found"],
            hint=f"pip install 'gpusq-onnx[tensorrt]' on a machine with an NVIDIA GPU and its driver; or {otherwise}",
        ) from error
