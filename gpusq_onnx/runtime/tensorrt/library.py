"""The TensorRT that builds: which one starts here, on which GPU; or one sentence that says what to install.

TensorRT 10 or 11, or TensorRT-RTX on request. The harness for machines with no GPU (`runtime.trt_cpu`) is taken only
when its folder is given; what it builds proves that the model builds, and is for no GPU.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpusq_onnx.errors import EnvironmentLacking
from gpusq_onnx.runtime.child import ask
from gpusq_onnx.runtime.tensorrt.gpu import Gpu
from gpusq_onnx.scratch import Scratch

WORKER = "gpusq_onnx.runtime.tensorrt.worker"
_ELSE = "; or try the build without a GPU: --cpu-harness FOLDER"


@dataclass(frozen=True)
class Library:
    """A TensorRT that starts.

    Attributes:
        name: "TensorRT 11.4", "TensorRT-RTX 1.7 (CPU)".
        version: in full, as its Python bindings tell it.
        gpu: what it builds for; None for the harness, and for TensorRT-RTX on a machine with no GPU.
        site: the harness's folder for sys.path; None: an installed TensorRT.
        rtx: reached through Polygraphy's switch for TensorRT-RTX.
    """

    name: str
    version: str
    gpu: Gpu | None
    site: Path | None
    rtx: bool

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.version.split(".")[0])

    @property
    def deployable(self) -> bool:
        """Whether its engines are for a GPU; the harness's are not."""
        return self.site is None

    @property
    def identity(self) -> dict[str, Any]:
        """What makes its engines differ from another's, for keys."""
        return {"library": self.name, "version": self.version, "gpu": self.gpu}


def find_library(*, rtx: bool = False, harness: Path | None = None, timeout: float = 120.0) -> Library:
    """Start TensorRT in a process of its own and see.

    Args:
        rtx: TensorRT-RTX instead of TensorRT.
        harness: build without a GPU; the cache folder in which the harness is, or is set up on first use (150 MB).
        timeout: seconds for the start.

    Raises:
        EnvironmentLacking: not installed, does not load, too old, or no GPU: which, and what to install.
    """
    name, package = ("TensorRT-RTX", "tensorrt_rtx") if rtx else ("TensorRT", "tensorrt")
    site = None
    if harness is not None:
        from gpusq_onnx.runtime.trt_cpu import prepare

        site = prepare(harness)
    install = "pip install tensorrt-rtx" if rtx else "pip install 'gpusq-onnx[tensorrt]'"
    if site is None and find_spec(package) is None:
        raise EnvironmentLacking(
            f"{name} is not installed", hint=f"{install}, on a machine with an NVIDIA GPU and its driver{_ELSE}"
        )
    request = {"task": "probe", "rtx": rtx, "site": str(site or "")}
    with Scratch() as scratch:
        reply = ask(WORKER, request, scratch, timeout)
        said = reply.said()
    answer = reply.answer
    if "unusable" not in answer and "library" in answer:
        if site is None and not rtx and answer["gpu"] is None:
            raise _no_gpu(answer["library"], "the CUDA driver shows no device")
        return Library(answer["library"], answer["version"], answer["gpu"], site, rtx)
    reason = str(answer.get("unusable", " | ".join([f"it {reply.end}", *said[-3:]])))
    if site is not None:
        raise EnvironmentLacking(
            "the TensorRT for machines with no GPU does not start",
            where=str(harness),
            found=reason,
            hint="remove the folder and try again",
        )
    if answer.get("stage") == "version":
        raise EnvironmentLacking(
            f"{name} {reason} is too old", expected="TensorRT 10 or 11", hint=f"pip install 'tensorrt>=10'{_ELSE}"
        )
    if answer.get("stage") == "start":
        raise _no_gpu(answer["library"], reason)
    raise EnvironmentLacking(
        f"{name} is installed and does not load", found=reason, hint=f"{install} --force-reinstall{_ELSE}"
    )


def _no_gpu(library: str, reason: str) -> EnvironmentLacking:
    return EnvironmentLacking(
        f"{library} finds no NVIDIA GPU that it can use",
        found=reason,
        hint=f"install the NVIDIA driver, on a machine with a GPU{_ELSE}",
    )
