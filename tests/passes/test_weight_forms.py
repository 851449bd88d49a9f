"""Every form of a weight through every pass that changes weights: done, or refused with a reason; never our fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from weight_forms import FORMS, Form

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.sparsity.patterns import Pattern

# Beyond the two whose results are computed anew below: options that take a weight another way.
PIPELINES = (
    "fold",
    "fp16",
    "prune24{method=sparsegpt,head=true}",
    "prune24{pattern=4:8pair,method=magnitude,head=true},qdq-int8{clip=absmax,bias_correction=false,equalise=false,only=[*]}",
    "qdq-int8{profile=sparse-int8,outputs=all,weights=int8,only=[*]}",
    "prune24{head=true},qdq-int8{profile=sparse-int8,weights=int8,only=[*]},fp16",
    "prune24{method=magnitude,head=true},fp16,qdq-int8{weights=int8,only=[*]}",
)
TRAINED = ("prune24{head=true},distill{steps=1,batch=2},qdq-int8{only=[*]},qat{steps=1,batch=2}",)


def _run(form: Form, pipeline: str, folder: Path) -> tuple[Outcome, Path] | None:
    """The outcome and the file; None where the model is refused. Any other error fails the test."""
    source, output = folder / "model.onnx", folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(form.model(form.weights()), source)
    np.save(folder / "x.npy", form.samples())
    try:
        return manager.run(source, output, parse(pipeline), RunOptions(DataOptions(path=folder / "x.npy"))), output
    except UnsupportedModelError as refused:
        text = str(refused)
        assert "found:" in text or "next:" in text
        assert "contradict each other" not in text, text  # the model that came in has no such fault
        return None


def _outputs(model: Path | onnx.ModelProto, form: Form, *, optimize: bool = False) -> np.ndarray:  # type: ignore[type-arg]
    source = model if isinstance(model, Path) else model.SerializeToString()
    return Session(source, optimize=optimize, threads=1).run({"x": form.samples()})["y"].astype(np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", FORMS)
def test_pruning_by_magnitude_keeps_the_larger_two_of_each_four(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    done = _run(form, "prune24{method=magnitude,head=true}", tmp_path)
    assert (done is None) == (form.k is None and name not in ("names taken", "computed"))
    if done is not None and form.k is not None:
        expected = _outputs(form.model(form.pruned(form.weights())), form)
        np.testing.assert_array_equal(_outputs(done[1], form), expected)


@pytest.mark.parametrize("name", FORMS)
def test_stored_codes_compute_what_the_pairs_compute(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    pairs, codes = (_run(form, f"qdq-int8{{weights={kind},only=[*]}}", tmp_path) for kind in ("float", "int8"))
    assert (pairs is None) == (codes is None)
    if pairs is None or codes is None:
        return
    half_a_code = 4e-3 if form.dtype == np.float16 else 0  # onnxruntime divides by the scale in FP16, the pass in FP32
    np.testing.assert_allclose(_outputs(codes[1], form), _outputs(pairs[1], form), rtol=0, atol=half_a_code)
    assert _cosine(_outputs(codes[1], form), _outputs(form.model(form.weights()), form)) > 0.998
    quantised = [row.tensor for row in pairs[0].steps[0].rows if row.decision == "quantise weight"]
    sites = analyse(io.load(codes[1])).sites
    assert {site.quantised for site in sites} == ({"qdq"} if any(site.conflicts for site in sites) else {"int8"})
    assert len(sites) >= len(quantised)
    stored = {site.weight.name for site in sites}
    kept = [t.name for t in onnx.load(codes[1]).graph.initializer if t.name not in stored and np.prod(t.dims) > 200]
    assert not kept  # no float weight stays beside its codes


@pytest.mark.long
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", FORMS)
def test_it_is_done_or_refused_with_a_reason(name: str, pipeline: str, tmp_path: Path) -> None:
    form = FORMS[name]
    done = _run(form, pipeline, tmp_path)
    if done is None:
        return
    dense = _outputs(form.model(form.weights()), form)
    found = _outputs(done[1], form)
    assert np.isfinite(found).all()
    assert _cosine(found, dense) > (0.7 if "prune24" in pipeline else 0.998)
    # In a default session, too; not closer, as its INT8 kernels for CPUs without VNNI saturate at 16 bits
    assert _cosine(_outputs(done[1], form, optimize=True), found) > 0.95
    if pipeline.startswith(("prune24{method=", "prune24{head")):
        pruned = [row for row in done[0].steps[0].rows if not row.skipped]
        left = [site.read() for site in analyse(io.load(done[1])).sites if site.k % 4 == 0]
        assert sum(Pattern(2, 4).holds(w) for w in left) >= len(pruned)


@pytest.mark.slow  # seconds a form, for the training's own start
@pytest.mark.parametrize("pipeline", TRAINED)
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.dtype == np.float32])
def test_training_takes_it_or_refuses_it_with_a_reason(name: str, pipeline: str, tmp_path: Path) -> None:
    form = FORMS[name]
    done = _run(form, pipeline, tmp_path)
    if done is not None:
        assert _cosine(_outputs(done[1], form), _outputs(form.model(form.weights()), form)) > 0.7
