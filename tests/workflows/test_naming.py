"""Errors and warnings name the model that was given, whatever copy of it the work went by."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gpusq_onnx
from gpusq_onnx.errors import GpusqError, UsageError
from gpusq_onnx.scratch import PREFIX, Scratch, naming
from tests.graph.small_graphs import FLOAT, node, normal, proto

X = {"x": np.random.default_rng(0).standard_normal((4, 16, 32)).astype(np.float32)}


def broken(op: str) -> onnx.ModelProto:
    """Two Linears and what no session runs between them: a Reshape to another size, or an operator of nobody."""
    if op == "Reshape":
        middle, more = node("Reshape", ["h", "s"], ["g"]), {"s": np.array([7, 32])}
    else:
        middle, more = node("Magic", ["h"], ["g"], domain="nobody"), {}
    nodes = [node("MatMul", ["x", "w"], ["h"]), middle, node("MatMul", ["g", "v"], ["y"])]
    made = proto(
        nodes, [("x", FLOAT, [2, 16, 32])], [("y", FLOAT, None)], {"w": normal(32, 32), "v": normal(32, 32), **more}
    )
    if op != "Reshape":
        made.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    return made


VERBS: dict[str, tuple[str, Any]] = {
    "fp16": ("Reshape", lambda model, folder: gpusq_onnx.compress(model, "fp16", output=folder / "out.onnx", data=X)),
    "sensitivity": ("Magic", lambda model, folder: gpusq_onnx.sensitivity(model, data=X)),
    "check": ("Magic", lambda model, folder: gpusq_onnx.check(model, model, data=X)),
}  # fmt: skip


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_an_error_names_the_model_that_was_given(verb: str, memory: bool, external: bool, tmp_path: Path) -> None:
    op, act = VERBS[verb]
    path = tmp_path / "mine.onnx"
    onnx.save(broken(op), path, save_as_external_data=external, location="mine.data", size_threshold=0)
    with pytest.raises(GpusqError) as caught:
        act(onnx.load(path) if memory else path, tmp_path)
    assert PREFIX not in str(caught.value)
    assert caught.value.details["where"] == ("model.onnx" if memory else str(path))


def test_a_warning_that_nothing_is_proven_names_no_copy(tmp_path: Path) -> None:
    result = gpusq_onnx.compress(broken("Magic"), "prune24{method=magnitude}", output=tmp_path / "out.onnx")
    (said,) = (text for text in result.warnings if "nothing is proven" in text)
    assert PREFIX not in said
    assert "Magic" in said


def test_only_paths_into_scratch_folders_are_renamed() -> None:
    with Scratch() as folder, pytest.raises(UsageError) as caught, naming("mine.onnx"):
        raise UsageError(f"cannot read {folder}/a.onnx: bad", where=f"'{folder / 'b.onnx'}'", found="/tmp/other.onnx")
    assert caught.value.what == "cannot read mine.onnx: bad"
    assert caught.value.details["where"] == "'mine.onnx'"
    assert caught.value.details["found"] == "/tmp/other.onnx"
    assert not re.search(re.escape(PREFIX), str(caught.value.args))
