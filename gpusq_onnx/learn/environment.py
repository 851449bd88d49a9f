"""Whether this machine can train at all, asked before anything of torch is imported."""

from __future__ import annotations

from importlib.util import find_spec

from gpusq_onnx.errors import EnvironmentLacking

NEEDED = ("torch", "accelerate", "safetensors")


def require_training() -> None:
    """Raise EnvironmentLacking for the first of `NEEDED` that is not installed."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise EnvironmentLacking(
                f"training needs {name}, which is not installed", hint="pip install 'gpusq-onnx[train]'"
            )


def on_gpu() -> bool:
    """Whether training with `device=auto` runs on an accelerator."""
    import torch

    return bool(torch.accelerator.is_available())
