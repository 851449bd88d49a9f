"""What onnxruntime's default kernels do to numbers is said, and is not the fault of the file that was written."""

from pathlib import Path

import broken_onnxruntime
import pytest

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions

ASSETS = Path(__file__).parents[1] / "assets"


def apply(folder: Path, passes: str) -> Outcome:
    images = DataOptions(path=ASSETS / "digits_train.npz", samples=8)
    return manager.run(ASSETS / "digits_vit.onnx", folder / "out.onnx", parse(passes), RunOptions(images))


def unless(entry: str, change: str, operator: str) -> str:
    """Optimised sessions multiply the outputs of a model with `operator` by `change`, unless `entry` is on."""
    return f"""
def load(data, optimised):
    import inspect
    options = inspect.currentframe().f_back.f_locals["sess_options"]
    try:
        load.precise = options.get_session_config_entry("{entry}") == "1"
    except Exception:
        load.precise = False


def result(values, data, optimised):
    return [v * ({change} if optimised and not load.precise and b"{operator}" in data else 1) for v in values]
"""


SATURATES = unless("session.x64quantprecision", "-1.0", "QuantizeLinear")
ROUNDS = unless("session.qdq_matmulnbits_accuracy_level", "1.5", "DequantizeLinear")
ROUNDS_AS_NAMED = """
def result(values, data, optimised):
    import onnx
    nodes = onnx.load_from_string(data).graph.node
    rounds = any(a.name == "accuracy_level" and a.i == 4 for n in nodes for a in n.attribute)
    return [v * (1.5 if optimised and rounds else 1) for v in values]
"""


def test_kernels_that_saturate_on_this_cpu_are_not_the_file_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, SATURATES)
    outcome = apply(tmp_path, "qdq-int8")
    assert outcome.proof is not None
    assert "saturate on this CPU" in (outcome.proof.note or "")
    assert outcome.proof.note in outcome.warnings


def test_kernels_that_round_data_beside_four_bit_weights_are_not_the_file_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, ROUNDS)
    outcome = apply(tmp_path, "int4-weights{block=32}")
    assert outcome.proof is not None
    assert "4-bit weights round their data to INT8" in (outcome.proof.note or "")
    assert outcome.proof.note in outcome.warnings


def test_nodes_that_name_such_a_kernel_are_judged_by_a_precise_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, ROUNDS_AS_NAMED)
    outcome = apply(tmp_path, "int4-weights{block=32,runtime=onnxruntime}")
    assert outcome.proof is not None
    assert "accuracy_level=1" in (outcome.proof.note or "")
