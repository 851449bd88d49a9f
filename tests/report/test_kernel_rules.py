"""The rules that predict kernels and explain engines."""

from dataclasses import replace

import pytest

from gpusq_onnx.quant.formats import FORMATS, INT8
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.report.kernels import WeightFacts, eligible, find_obstacles, kernel, why_dense
from gpusq_onnx.sparsity.patterns import TWO_FOUR

BEST = WeightFacts("MatMul", 768, 768, 768, (TWO_FOUR,), 0.5, Quantised(INT8, INT8, INT8), FORMATS["fp16"])
BOTH = Quantised(INT8, INT8)


def kinds(facts: WeightFacts) -> list[str]:
    return [obstacle.kind for obstacle in find_obstacles(facts)]


def test_a_weight_with_nothing_in_its_way() -> None:
    assert (kinds(BEST), str(kernel(BEST, ())), eligible(())) == ([], "sparse INT8", True)


@pytest.mark.parametrize(
    ("change", "kernel_class", "fits", "expected"),
    [
        ({"quantised": Quantised()}, "sparse FP16", True, []),
        ({"quantised": Quantised(), "float_type": FORMATS["fp32"]}, "dense FP32", False, ["precision"]),
        ({"quantised": Quantised(INT8), "float_type": FORMATS["bf16"]}, "dense BF16", False, ["precision"]),
        ({"quantised": BOTH}, "dense INT8", True, ["output"]),
        ({"quantised": Quantised(), "float_type": FORMATS["fp64"]}, "onnxruntime only", False, ["runtime"]),
        ({"quantised": BOTH, "given": True}, "dense INT8", True, ["caller"]),
        ({"patterns": (), "zeros": 0.1}, "dense INT8", False, ["pattern"]),
        ({"grouped": 3, "op": "Conv", "patterns": ()}, "dense INT8", False, ["alignment"]),
        ({"conflicts": ("tied",)}, "dense INT8", False, ["shared"]),
        ({"out": 192}, "sparse INT8", True, ["size"]),
        ({"k": 192, "grouped": 192}, "sparse INT8", True, ["size"]),
        ({"k": 776, "grouped": 776}, "sparse INT8", True, ["vector"]),
        ({"out": 1000}, "sparse INT8", True, ["vector"]),
        ({"out": 1000, "quantised": Quantised()}, "sparse FP16", True, []),
        ({"quantised": BOTH, "out": 100}, "dense INT8", True, ["output", "size", "vector"]),
    ],
)
def test_what_stands_in_the_way(change: dict[str, object], kernel_class: str, fits: bool, expected: list[str]) -> None:
    facts = replace(BEST, **change)
    obstacles = find_obstacles(facts)
    assert kinds(facts) == expected
    assert (str(kernel(facts, obstacles)), eligible(obstacles)) == (kernel_class, fits)


def test_what_a_pass_can_change_names_the_pass() -> None:
    worst = replace(BEST, patterns=(), quantised=BOTH)
    assert [o.remedy for o in find_obstacles(worst)] == ["--passes prune24", "--passes 'qdq-int8{profile=sparse-int8}'"]


def test_a_remedy_changes_the_type_that_it_is_for() -> None:
    remedies = {
        name: [o.remedy for o in find_obstacles(replace(BEST, quantised=Quantised(), float_type=FORMATS[name]))]
        for name in ("fp32", "bf16", "fp64")
    }
    assert remedies == {
        "fp32": ["--passes 'qdq-int8{profile=sparse-int8}', or fp16"],
        "bf16": ["--passes 'qdq-int8{profile=sparse-int8}'"],
        "fp64": ["export the model in float32"],
    }


def test_the_graph_s_reason_comes_before_the_engine_s() -> None:
    obstacles = find_obstacles(replace(BEST, quantised=BOTH))
    assert why_dense(obstacles, fused=True, batch=1, optimization_level=3, open_batch=True).kind == "output"


@pytest.mark.parametrize(
    ("fused", "batch", "level", "open_batch", "kind", "remedy"),
    [
        (True, 1, 3, True, "region", "sparse-int8"),
        (False, 1, 3, True, "batch", "--batch"),
        (False, 1, 3, False, "batch", "export"),
        (False, 8, 3, True, "slower", "--optimization-level 5"),
        (False, 8, 5, True, "slower", ""),
    ],
)
def test_the_engine_s_reasons(fused: bool, batch: int, level: int, open_batch: bool, kind: str, remedy: str) -> None:
    found = why_dense((), fused=fused, batch=batch, optimization_level=level, open_batch=open_batch)
    assert found.kind == kind
    assert remedy in found.remedy
    assert bool(found.remedy) == bool(remedy)
