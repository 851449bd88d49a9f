"""The child process in which TensorRT's builder meets a model; see `runtime.child` for how it is started.

Two tasks. "probe" says which TensorRT starts here and on which GPU. "build" parses, builds, writes the plan and the
timing cache, and has the plan read again for the engine inspector's JSON, at the shapes that the engine is tuned for.

All of TensorRT's log is printed, at its most verbose: 10.x names the sparse layers there only.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from gpusq_onnx.runtime.child import serve
from gpusq_onnx.runtime.tensorrt import gpu

OLDEST = 10  # the first major version whose strongly typed networks take all that this tool writes

Sizes = Mapping[str, Mapping[str, Sequence[int]]]
"""One profile: {"input": {"min": [...], "opt": [...], "max": [...]}}."""


class BuildRequest(TypedDict, total=False):
    """What the parent asks; all but `task`, `rtx` and `site` are of "build". Files are paths; empty: none.

    `site` is the folder of the harness for machines with no GPU, at the start of sys.path.
    """

    task: str
    rtx: bool
    site: str
    model: str
    plan: str
    profiles: Sequence[Sizes]
    options: Mapping[str, Any]
    timings: str
    new_timings: str


class BuildAnswer(TypedDict, total=False):
    """What the child found. `unusable` and `stage` ("import", "version", "start"): why TensorRT is of no use here.

    No `errors` in the answer to a build: it did not finish. `inspector` is the engine inspector's JSON text, or why
    there is none in `uninspected`.
    """

    unusable: str
    stage: str
    library: str
    version: str
    gpu: gpu.Gpu | None
    errors: list[str]
    built: bool
    inspector: str
    uninspected: str


def main() -> None:
    """Answer the request in argv[1]."""
    serve(_work)


def _work(request: BuildRequest) -> Iterator[BuildAnswer]:
    """The answer as it grows; the last one counts."""
    answer: BuildAnswer = {"gpu": None if request["site"] else gpu.current()}
    stage = "import"
    try:
        from polygraphy import config

        config.USE_TENSORRT_RTX = request["rtx"]  # Polygraphy's switch; its modules read it when they are imported
        from polygraphy.logger import G_LOGGER

        G_LOGGER.colors = False
        G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE if request["task"] == "build" else G_LOGGER.ERROR
        trt = _tensorrt(request)
        answer["version"] = str(trt.__version__)
        name = "TensorRT-RTX" if request["rtx"] else "TensorRT"
        answer["library"] = str(getattr(trt, "LIBRARY", f"{name} {'.'.join(answer['version'].split('.')[:2])}"))
        if not request["rtx"] and int(answer["version"].split(".")[0]) < OLDEST:
            yield {**answer, "stage": "version", "unusable": answer["version"]}
            return
        stage = "start"
        from polygraphy.backend.trt import create_network

        builder, network = create_network(strongly_typed=True)
    except Exception as error:  # whatever TensorRT raises where it cannot start: ImportError, OSError, TypeError, …
        yield {**answer, "stage": stage, "unusable": f"{type(error).__name__}: {error}"}
        return
    yield answer
    if request["task"] == "build":
        yield from _build(trt, builder, network, request, answer)


def _tensorrt(request: BuildRequest) -> Any:
    """The module that Polygraphy will find. The harness is TensorRT-RTX, so it answers to that name, too."""
    if not request["rtx"]:
        import tensorrt

        return tensorrt
    if request["site"]:
        import tensorrt

        sys.modules.setdefault("tensorrt_rtx", tensorrt)
    import tensorrt_rtx

    return tensorrt_rtx


def _build(trt: Any, builder: Any, network: Any, request: BuildRequest, answer: BuildAnswer) -> Iterator[BuildAnswer]:
    from polygraphy.backend.trt import engine_bytes_from_network, util
    from polygraphy.exception import PolygraphyException

    from gpusq_onnx.runtime.tensorrt.parser_worker import parse

    if errors := parse(trt, util.get_trt_logger(), network, request["model"]):
        yield {**answer, "errors": errors, "built": False}
        return
    try:
        config = _config(trt, request)
        plan = engine_bytes_from_network((builder, network), config, save_timing_cache=request["new_timings"] or None)
        Path(request["plan"]).write_bytes(plan)
    except PolygraphyException as error:
        yield {**answer, "errors": [f"builder: {error}"], "built": False}
        return
    answer = {**answer, "errors": [], "built": True}
    yield answer  # an inspector that crashes does not take the engine with it
    try:
        yield {**answer, "inspector": _inspect(trt, Path(request["plan"]), request["profiles"][0])}
    except Exception as error:
        yield {**answer, "uninspected": f"{type(error).__name__}: {error}"}


def _config(trt: Any, request: BuildRequest) -> Any:
    """Polygraphy's loader of the builder configuration."""
    from polygraphy.backend.trt import CreateConfig, Profile

    options = request["options"]
    profiles = []
    for sizes in request["profiles"]:
        profile = Profile()
        for name, bounds in sizes.items():
            profile.add(name, **{kind: list(shape) for kind, shape in bounds.items()})
        profiles.append(profile)
    common: dict[str, Any] = {
        "profiles": profiles,
        "sparse_weights": options["sparse"],
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "builder_optimization_level": options["optimization_level"],
        "memory_pool_limits": {getattr(trt.MemoryPoolType, n.upper()): size for n, size in options["memory"].items()},
        "version_compatible": options["version_compatible"],
        "load_timing_cache": request["timings"] or None,
    }
    if options["hardware"] != "none":
        level = options["hardware"].upper()
        common["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    if not request["rtx"]:
        return CreateConfig(tf32=options["tf32"], **common)
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    return CreateConfigRTX(**common)


def _inspect(trt: Any, plan: Path, profile: Sizes) -> str:
    """The inspector's JSON. Without a context, formats and types of tensors with dynamic shapes stay unsaid."""
    from polygraphy.backend.trt import engine_from_bytes

    engine = engine_from_bytes(plan.read_bytes())
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    if context is not None:  # None: not enough memory on the GPU
        for name, bounds in profile.items():
            context.set_input_shape(name, tuple(bounds["opt"]))
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
