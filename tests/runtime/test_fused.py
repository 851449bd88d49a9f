"""The Triton kernels without a GPU: exact in Triton's interpreter, and compiled to machine code for two GPUs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def test_they_are_exact_in_tritons_interpreter() -> None:
    script = Path(__file__).with_name("fused_in_interpreter.py")
    given = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": given}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("capability", "instruction"), [(80, r"mma\.sync.*s8"), (90, r"wgmma.*s8")])
def test_linears_compile_to_int8_tensor_core_instructions(capability: int, instruction: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gpusq_onnx.runtime.kernels.fused import TILES, _kernel

    names = _kernel.arg_names
    kinds = dict.fromkeys(names, "constexpr")
    kinds |= {name: "*i8" if name[0] in "xwy" else "*fp32" for name in names if name.endswith("_at")} | {"rows": "i32"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_at")}
    tile = TILES[1]
    given = {"n": 3072, "k": 768, "has_bias": True, "has_middle": True, "has_out": True, "activation": 2}
    given |= {"bm": tile.rows, "bn": tile.columns, "bk": tile.depth, "group": tile.group}
    source = ASTSource(_kernel, kinds, given, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert re.search(instruction, made.asm["ptx"]), "no INT8 tensor core instruction"
    assert made.asm["cubin"]


@pytest.mark.parametrize(("capability", "instruction"), [(80, r"mma\.sync.*f16"), (90, r"(wgmma|mma\.sync).*f16")])
def test_attention_compiles_to_tensor_core_instructions(capability: int, instruction: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gpusq_onnx.runtime.kernels.attention_kernel import ROWS, _kernel

    names = _kernel.arg_names
    given = {"has_out": True, "rows": ROWS, "width": 256, "head": 64}
    kinds = {name: "constexpr" if name in given else "i32" for name in names}
    kinds |= {name: "*fp32" if name in ("scales_at", "out_at") else "*i8" for name in names if name.endswith("_at")}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_at")}
    ones = {(names.index(f"{tensor}_d"),): 1 for tensor in "qkvy"}  # what a launch knows of contiguous heads
    kinds |= {f"{tensor}_d": "constexpr" for tensor in "qkvy"}
    source = ASTSource(_kernel, kinds, {**given, **{names[i]: value for (i,), value in ones.items()}}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "num_stages": 1})
    assert re.search(instruction, made.asm["ptx"])
    assert made.asm["cubin"] and made.metadata.shared < 160_000
