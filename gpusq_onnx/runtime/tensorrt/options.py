"""What an engine is built with, besides the model: everything that an engine's bytes can depend on and a caller sets.

Networks are always strongly typed and the profiling verbosity is always detailed: the first is TensorRT 11's only way,
the second is what the report reads. No precision flag exists here: the precision is what the ONNX file says.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpusq_onnx.errors import UsageError
from gpusq_onnx.runtime.tensorrt.profiles import Profile

POOLS = {"workspace": "workspace", "tactic_shared_memory": "tacticSharedMem"}
"""Memory pools of `trt.MemoryPoolType` that exist on a plain GPU in every version, and trtexec's names for them."""

HARDWARE = {"none": "", "ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
"""Levels of `trt.HardwareCompatibilityLevel`, and trtexec's names for them."""

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class BuildOptions:
    """Options of one build.

    Attributes:
        profiles: optimisation profiles, the first one is the deployment's.
        sparse: look for sparse kernels (`BuilderFlag.SPARSE_WEIGHTS`).
        tf32: let FP32 layers compute in TF32, as TensorRT does unless it is switched off.
        optimization_level: 0 (fast build) to 5 (long search); TensorRT's own default is 3.
        memory: bytes by memory pool, see `POOLS`; a pool that is not named has TensorRT's own limit.
        hardware: a level of `HARDWARE`; beyond "none", other GPUs can load the engine and it is slower.
        version_compatible: later TensorRT versions of the same major can load the engine.
        rtx: TensorRT-RTX (module `tensorrt_rtx`) instead of TensorRT.
    """

    profiles: tuple[Profile, ...]
    sparse: bool = True
    tf32: bool = True
    optimization_level: int = 3
    memory: Mapping[str, int] = field(default_factory=dict)
    hardware: str = "none"
    version_compatible: bool = False
    rtx: bool = False

    def __post_init__(self) -> None:
        if self.rtx and self.hardware != "none":
            raise UsageError(
                "TensorRT-RTX has no hardware compatibility levels: its engines are compiled when they load",
                found=self.hardware,
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the same for equal options."""
        return {**asdict(self), "memory": dict(sorted(self.memory.items()))}


def parse_memory(text: str) -> dict[str, int]:
    """Bytes by pool.

    >>> parse_memory("workspace:4G")
    {'workspace': 4294967296}

    Raises:
        UsageError: an unknown pool, no number, or a pool named twice.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(\w+):(\d+)([BKMG]?)", part.strip())
        if match is None or match[1] not in POOLS or match[1] in found or not int(match[2]):
            raise UsageError(
                "--memory cannot be read",
                expected=f"POOL:SIZE, comma-separated; pools: {', '.join(POOLS)}; sizes: 512M, 4G",
                found=text,
            )
        found[match[1]] = int(match[2]) * _UNITS[match[3]]
    return found
