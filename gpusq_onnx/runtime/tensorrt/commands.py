"""The same build as one `trtexec` and one `polygraphy` command line, to paste into a shell without this tool.

Sources: trtexec of TensorRT 10 and 11 (`--stronglyTyped` is gone in 11, where nothing else exists; memory sizes are in
MiB), tensorrt_rtx of TensorRT-RTX, Polygraphy 0.53's `convert`. Limits: timing and engine caches are this tool's own.
"""

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

from gpusq_onnx.runtime.tensorrt.options import HARDWARE, POOLS, BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import Profile, Shape


def trtexec(model: Path, plan: Path, options: BuildOptions, *, dynamic: Collection[str], major: int) -> str:
    """The trtexec line for TensorRT `major`; for TensorRT-RTX its tool of the same options, `tensorrt_rtx`.

    `dynamic` names the inputs with open axes: trtexec refuses shapes for the others.
    """
    words = ["tensorrt_rtx" if options.rtx else "trtexec", f"--onnx={model}", f"--saveEngine={plan}"]
    if not options.rtx and major < 11:
        words.append("--stronglyTyped")
    if options.sparse and not options.rtx:
        words.append("--sparsity=enable")
    for index, profile in enumerate(options.profiles):
        words += [f"--profile={index}"] if len(options.profiles) > 1 else []
        open_inputs = {name: bounds for name, bounds in profile.items() if name in dynamic}
        words += [f"--{kind}Shapes={','.join(s)}" for kind, s in _kinds(open_inputs, "{}:{}", "x") if s]
    words += [f"--builderOptimizationLevel={options.optimization_level}", "--profilingVerbosity=detailed"]
    if options.memory:
        sizes = (f"{POOLS[pool]}:{size / 2**20:g}" for pool, size in sorted(options.memory.items()))
        words.append(f"--memPoolSize={','.join(sizes)}")
    if options.hardware != "none":
        words.append(f"--hardwareCompatibilityLevel={HARDWARE[options.hardware]}")
    if options.version_compatible:
        words.append("--versionCompatible")
    if not options.tf32 and not options.rtx:
        words.append("--noTF32")
    return shlex.join([*words, "--skipInference"])


def polygraphy(model: Path, plan: Path, options: BuildOptions) -> str:
    """The polygraphy line; Polygraphy chooses TensorRT-RTX by an environment variable."""
    words = ["polygraphy", "convert", str(model), "--convert-to", "trt", "-o", str(plan), "--strongly-typed"]
    words += ["--sparse-weights"] if options.sparse else []
    words += ["--tf32"] if options.tf32 and not options.rtx else []
    for profile in options.profiles:
        for kind, shapes in _kinds(profile, "{}:[{}]", ","):
            words += [f"--trt-{kind}-shapes", *shapes] if shapes else []
    words += ["--builder-optimization-level", str(options.optimization_level), "--profiling-verbosity", "detailed"]
    if options.memory:
        words += ["--pool-limit", *(f"{pool}:{size}" for pool, size in sorted(options.memory.items()))]
    if options.hardware != "none":
        words += ["--hardware-compatibility-level", options.hardware]
    if options.version_compatible:
        words.append("--version-compatible")
    return ("POLYGRAPHY_USE_TENSORRT_RTX=1 " if options.rtx else "") + shlex.join(words)


def _kinds(profile: Profile, form: str, sign: str) -> Iterator[tuple[str, list[str]]]:
    """("min", one text an input), ("opt", …), ("max", …); scalars have no shape to give."""
    for kind in ("min", "opt", "max"):
        shapes: dict[str, Shape] = {name: getattr(bounds, kind) for name, bounds in profile.items()}
        yield kind, [form.format(name, sign.join(map(str, shape))) for name, shape in shapes.items() if shape]
