"""gpusq-onnx: 2:4 sparsity and INT8 quantisation for exported vision transformers (GPUSQ-ViT, CVPR 2023).

The public API is what `__all__` names, described in docs/python.md. Each name is imported when it is first asked for:
`import gpusq_onnx` alone loads neither numpy nor onnx.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpusq_onnx import errors
    from gpusq_onnx.data.options import DataOptions
    from gpusq_onnx.graph.model import Model
    from gpusq_onnx.pipeline.base import Context, Pass, PassOptions, PlanContext, PlanRow
    from gpusq_onnx.quant.formats import Format
    from gpusq_onnx.quant.schemes import Scheme
    from gpusq_onnx.runtime.compare.gates import Gates
    from gpusq_onnx.sparsity.patterns import Pattern
    from gpusq_onnx.workflows.apply import compress
    from gpusq_onnx.workflows.bench import bench
    from gpusq_onnx.workflows.build import EngineOptions, build
    from gpusq_onnx.workflows.cam import cam
    from gpusq_onnx.workflows.check import check
    from gpusq_onnx.workflows.inspect import inspect
    from gpusq_onnx.workflows.models import load, save
    from gpusq_onnx.workflows.pack import pack, unpack
    from gpusq_onnx.workflows.plan import plan
    from gpusq_onnx.workflows.result import Plan, Result
    from gpusq_onnx.workflows.sensitivity import sensitivity
    from gpusq_onnx.workflows.tune import tune

__version__ = "0.1.0"

__all__ = [
    "Context",
    "DataOptions",
    "EngineOptions",
    "Format",
    "Gates",
    "Model",
    "Pass",
    "PassOptions",
    "Pattern",
    "Plan",
    "PlanContext",
    "PlanRow",
    "Result",
    "Scheme",
    "bench",
    "build",
    "cam",
    "check",
    "compress",
    "errors",
    "inspect",
    "load",
    "pack",
    "plan",
    "save",
    "sensitivity",
    "tune",
    "unpack",
]

# Where each name lives: "module:attribute", "" for the module itself.
_HOMES = {
    "Context": "pipeline.base:Context",
    "DataOptions": "data.options:DataOptions",
    "EngineOptions": "workflows.build:EngineOptions",
    "Format": "quant.formats:Format",
    "Gates": "runtime.compare.gates:Gates",
    "Model": "graph.model:Model",
    "Pass": "pipeline.base:Pass",
    "PassOptions": "pipeline.base:PassOptions",
    "Pattern": "sparsity.patterns:Pattern",
    "Plan": "workflows.result:Plan",
    "PlanContext": "pipeline.base:PlanContext",
    "PlanRow": "pipeline.base:PlanRow",
    "Result": "workflows.result:Result",
    "Scheme": "quant.schemes:Scheme",
    "bench": "workflows.bench:bench",
    "build": "workflows.build:build",
    "cam": "workflows.cam:cam",
    "check": "workflows.check:check",
    "compress": "workflows.apply:compress",
    "errors": "errors:",
    "inspect": "workflows.inspect:inspect",
    "load": "workflows.models:load",
    "pack": "workflows.pack:pack",
    "plan": "workflows.plan:plan",
    "save": "workflows.models:save",
    "sensitivity": "workflows.sensitivity:sensitivity",
    "tune": "workflows.tune:tune",
    "unpack": "workflows.pack:unpack",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _HOMES[name].partition(":")
    home = import_module(f"{__name__}.{module}")
    found = getattr(home, attribute) if attribute else home
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
