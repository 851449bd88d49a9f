"""An onnxruntime session as this tool uses it: loaded or refused with a clear error, asked for its inputs, and run.

`exact_qdq` sets the session option `session.disable_quant_qdq=1` (source: onnxruntime_session_options_config_keys.h):
QuantizeLinear and DequantizeLinear are then executed as the ONNX operators say, where onnxruntime would fuse them with
their neighbours into integer kernels that round otherwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError, UsageError
from gpusq_onnx.runtime.machine import return_freed_memory, usable_cpus

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Feed = Mapping[str, NDArray[Any]]
Infer = Callable[[Feed], Mapping[str, NDArray[Any]]]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_DEFAULT_SEVERITY = 2  # warnings
_FATAL_ONLY = 4  # onnxruntime's log severity: its errors reach the reader as exceptions, once


class TensorInfo(NamedTuple):
    """An input or output. Dimensions are sizes, names of dynamic dimensions, or None where nothing is known."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


class Session:
    """A model loaded by onnxruntime.

    Args:
        model: a file (external data is found beside it) or a serialised model.
        name: what errors call it; None: its path.
        optimize: onnxruntime's graph optimisations; off, every node runs as written.
        exact_qdq: Q and DQ nodes run as written even when optimising.
        file_order: nodes run as early as the file has them, where onnxruntime's own order may put one off to the end
            and keep its inputs until then.
        precise: integer kernels that do not saturate on x64 CPUs without VNNI, where the default ones add products of
            8 bits in 16 (`session.x64quantprecision`); data beside 4-bit weights stays in FP32.
        prepack: keep weights, besides as they are, in the order in which kernels read them: worth its time and memory
            for more than one run.
        threads: threads within an operator; 0 takes all CPUs that this process may use.
        provider: an execution provider; refused when absent, since onnxruntime would fall back to the CPU in silence.
        provider_options: the provider's own, as text by name.

    Raises:
        UsageError: no such file.
        UnsupportedModelError: onnxruntime cannot load the model; its message is in the error.
        EnvironmentLacking: the provider is not there.
    """

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        name: str | None = None,
        optimize: bool = True,
        exact_qdq: bool = False,
        file_order: bool = False,
        precise: bool = False,
        prepack: bool = True,
        threads: int = 0,
        provider: str = "CPUExecutionProvider",
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name or ("a serialised model" if isinstance(model, bytes) else str(model))
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise UsageError("the model file does not exist", where=self.name)
        entries = {
            "session.disable_quant_qdq": exact_qdq,
            "session.x64quantprecision": precise,
            "session.qdq_matmulnbits_accuracy_level": precise,  # level 1: data in FP32
            "session.disable_prepacking": not prepack,
        }
        chosen = (provider, dict(provider_options or {}))
        return_freed_memory()  # a session is the largest thing that a process holds here
        self.handle = _load(
            model, self.name, optimize, [key for key, on in entries.items() if on], file_order, threads, chosen
        )

    max_batch: int | None = None
    """The largest batch that it takes; None: any."""

    def inputs(self) -> list[TensorInfo]:
        """The inputs that a feed must name, in the model's order."""
        return [_info(value) for value in self.handle.get_inputs()]

    def outputs(self) -> list[TensorInfo]:
        """The outputs, in the model's order."""
        return [_info(value) for value in self.handle.get_outputs()]

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that all inputs with dimensions have fixed; None where it is free or they disagree."""
        return fixed_batch(self.inputs())

    @contextmanager
    def opened(self) -> Iterator[Infer]:
        """A function that runs the model through Polygraphy's runner, every output, while the block lasts."""
        from polygraphy.backend.onnxrt import OnnxrtRunner

        with OnnxrtRunner(self.handle) as runner:

            def infer(feed: Feed) -> Mapping[str, NDArray[Any]]:
                with running(self.name):
                    return runner.infer(feed, check_inputs=False)  # type: ignore[no-any-return]

            yield infer

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """The named outputs (default: all) for one batch.

        Raises:
            UnsupportedDataError: the feed's names, types or shapes are not the model's.
            UnsupportedModelError: onnxruntime failed in the middle of the graph.
        """
        names = list(outputs) if outputs is not None else [info.name for info in self.outputs()]
        check_names(feed, self)
        with running(self.name):
            values = self.handle.run(names, dict(feed))
        return dict(zip(names, values, strict=True))


class Fed(Protocol):
    """A model that takes inputs by name: `Session`, or an engine."""

    name: str

    def inputs(self) -> list[TensorInfo]:
        """The inputs that a feed must name."""
        ...


def check_names(feed: Feed, model: Fed) -> None:
    """Raises UnsupportedDataError unless the feed has exactly the model's inputs."""
    expected = {info.name for info in model.inputs()}
    if set(feed) != expected:
        raise UnsupportedDataError(
            "the data does not name the model's inputs",
            where=model.name,
            expected=", ".join(sorted(expected)),
            found=", ".join(sorted(feed)),
        )


def fixed_batch(inputs: Sequence[TensorInfo]) -> int | None:
    """The size that axis 0 of all inputs with dimensions has; None where it is free or they disagree."""
    leading = {info.shape[0] for info in inputs if info.shape}
    size = leading.pop() if len(leading) == 1 else None
    return size if isinstance(size, int) else None


@contextmanager
def silenced() -> Iterator[None]:
    """Around sessions that others make (graphsurgeon's constant folding): their warnings stay off the terminal."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_DEFAULT_SEVERITY)


@contextmanager
def running(name: str) -> Iterator[None]:
    """Around a run of model `name`: onnxruntime's exceptions, which share no base class, become this tool's."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if type(error).__name__ == "InvalidArgument":
            raise UnsupportedDataError("the data does not fit the model", where=name, found=str(error)) from error
        raise UnsupportedModelError("onnxruntime cannot run the model", where=name, found=str(error)) from error


def _load(
    model: Path | str | bytes,
    name: str,
    optimize: bool,
    switches: Sequence[str],
    file_order: bool,
    threads: int,
    chosen: tuple[str, dict[str, str]],
) -> "InferenceSession":
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # on by default in 1.31; a tool in somebody's CI reports to nobody
    provider = chosen[0]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise EnvironmentLacking(
            f"onnxruntime has no {provider} here",
            found=", ".join(available),
            hint="install the onnxruntime package that carries it, and its driver",
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # A plan of the memory of one run is laid out from the second run on, beside what the first one took: twice the
    # activations, for no time that was measurable on a ViT.
    options.enable_mem_pattern = False
    # by hand: onnxruntime's own default counts and pins CPUs that a container may not let it use
    options.intra_op_num_threads = threads or usable_cpus()
    # Sessions alternate with each other and with numpy here: threads that go on spinning after a run would take the CPU
    # from what comes next (measured: 15 to 30 % of the time of two alternating sessions on two busy cores).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if file_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    for switch in switches:
        options.add_session_config_entry(switch, "1")
    try:
        with silenced():  # a provider that does not start is reported below, once and in words
            session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), sess_options=options, providers=[chosen]
            )
    except Exception as error:  # onnxruntime's exceptions share no base class
        said = str(error).replace(f"Load model from {model!s} failed:", "")  # `where` says it, by the reader's name
        raise UnsupportedModelError("onnxruntime cannot load the model", where=name, found=said) from error
    if provider not in session.get_providers():
        raise EnvironmentLacking(
            f"onnxruntime could not start {provider}",
            found=", ".join(session.get_providers()),
            hint="install the CUDA and cuDNN that this onnxruntime wants, and a driver",
        )
    return session


def numbers(value: Any) -> bool:
    """Whether an input or output of a session is a tensor of a type that numpy has."""
    return value.type in _DTYPES


def _info(value: Any) -> TensorInfo:
    if not numbers(value):
        raise UnsupportedModelError(f"{value.name} is a {value.type}", expected=", ".join(_DTYPES), found=value.type)
    return TensorInfo(value.name, np.dtype(_DTYPES[value.type]), tuple(value.shape))
