"""What the page is made of: cards, commands, layers, activations, sensitivity; and names that stay text."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter
from test_page import read

import gpusq_onnx
from gpusq_onnx.cli import main
from gpusq_onnx.graph.io import load
from gpusq_onnx.graph.model import from_proto
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.report.page import cards, commands, pictures
from gpusq_onnx.report.page import models as page_models
from gpusq_onnx.report.page.blocks import Cards, Gallery, Section, Shot
from gpusq_onnx.report.page.html import render
from gpusq_onnx.report.page.layers import LayerRow, layers_of
from gpusq_onnx.report.page.signals import signals_of
from gpusq_onnx.report.page.tune import of_tune
from gpusq_onnx.report.tuning import (
    FormLoss,
    JudgedPoint,
    ModelFile,
    Point,
    ReasonedLayer,
    Sensitivity,
    SharedGroup,
    TuningDocument,
)

pytest.importorskip("jinja2", reason="needs the extra report")
pytest.importorskip("matplotlib", reason="needs the extra report")

ASSETS = Path(__file__).parents[1] / "assets"
MODEL, DATA = ASSETS / "digits_vit.onnx", ASSETS / "digits_test.npz"
EVIL = '"><script>alert(1)</script> $x$ <!-- ]]>'


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> gpusq_onnx.Result:
    path = tmp_path_factory.mktemp("small") / "it's small.onnx"
    options = {"samples": 16, "mean": [0.5], "std": 0.5}
    return gpusq_onnx.compress(MODEL, "prune24,qdq-int8", data=DATA, data_options=options, output=path)


@pytest.mark.long
def test_the_cards_say_the_verdict(small: gpusq_onnx.Result) -> None:
    found = small.check(data=DATA, data_options={"samples": 32}, gates={"min_agreement": 0.5})
    good = {card.name: card for card in cards_of([small.outcome, found], {"sparse INT8": 3, "dense FP32": 1})}
    assert (good["verdict"].value, good["verdict"].tone) == ("gates met", "good")
    assert good["size"].value == "3.6x smaller" and good["kernels"].value == "3 of 4 sparse"
    before, after = (found.comparison.reference_metrics or {}, found.comparison.candidate_metrics or {})
    assert good["top-1"].value == f"{before['top1']:.1%} → {after['top1']:.1%}"
    missed = small.check(data=DATA, data_options={"samples": 32}, gates={"min_cosine": 1.0})
    bad = {card.name: card for card in cards_of([missed], None)}
    assert (bad["verdict"].value, bad["verdict"].tone) == ("not met", "bad") and "cosine" in bad["verdict"].more
    assert cards_of([small.outcome], None)[0].value == "runs"
    assert cards_of([gpusq_onnx.plan(MODEL, "prune24").outcome], None)[0].value == "a plan"


def cards_of(reports: list, kernels: dict[str, int] | None) -> list[cards.Card]:
    blocks = cards.summary(reports, cards.ModelFacts(kernels or {})).blocks
    return [card for block in blocks if isinstance(block, Cards) for card in block.cards]


@pytest.mark.long
def test_the_command_makes_the_same_again(small: gpusq_onnx.Result, tmp_path: Path) -> None:
    words = shlex.split(commands.of_run(small.outcome))
    assert words[:4] == ["gpusq-onnx", "apply", "--passes", small.pipeline] and words[-1] == str(MODEL)
    written = tmp_path / "again.onnx"
    words[words.index("-o") + 1] = str(written)
    assert main([*words[1:], "-q"]) == 0
    assert written.read_bytes() == small.path.read_bytes()
    checked = small.check(data=DATA, data_options={"samples": 8, "seed": 3}, gates={"min_agreement": 0.25})
    words = shlex.split(commands.of_check(checked))
    assert words[-4:] == ["--min-agreement", "0.25", str(MODEL), str(small.path)] and main([*words[1:], "-q"]) == 0
    assert words[words.index("--seed") + 1] == "3"


def matmul(w: np.ndarray, name: str = "w") -> gpusq_onnx.Model:
    """x [N, 4] times w [4, 4]."""
    node = helper.make_node("MatMul", ["x", name], ["y"], name="/layer/MatMul")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [numpy_helper.from_array(w, name)])
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), Path())


def test_layers_have_their_sparsity_and_error() -> None:
    w = np.float32([[1, 2, 3, 4]] * 4).T
    half = w.copy()
    half[:2] = 0
    (layer,), (shown,) = layers_of(matmul(w), matmul(half), inspect_model(matmul(half)))
    assert layer.pattern == "2:4" and layer.zeros == 0.5 and layer.scales == ()
    assert layer.error == pytest.approx(np.sqrt(5 / 30))
    assert sum(shown.counts) == sum(shown.before) == 16 and shown.ends == ()
    other = matmul(np.float32([[1], [2], [0.5], [3]]) * w)
    (same,), none = layers_of(matmul(w), other, inspect_model(other))
    assert same.error == pytest.approx(0, abs=1e-6) and not none, "equalising is no error"


def test_a_quantised_weight_is_judged_by_what_it_is_worth(small: gpusq_onnx.Result) -> None:
    other = small.load()
    layers, shown = layers_of(load(MODEL), other, inspect_model(other))
    by_role = {layer.role: layer for layer in layers}
    assert by_role["patch_embed"].error == 0 and by_role["patch_embed"].scales == ()
    low, middle, high = by_role["qkv"].scales
    assert 0 < low <= middle <= high and by_role["qkv"].pattern == "2:4" and 0.1 < (by_role["qkv"].error or 0) < 0.8
    assert len(shown) == 12 and shown[0].ends == pytest.approx((-127 * middle, 127 * middle), rel=0.5)


def test_activations_are_counted_against_their_grid(small: gpusq_onnx.Result) -> None:
    from gpusq_onnx.data.opening import open_source
    from gpusq_onnx.data.options import DataOptions

    model = small.load()
    source = open_source(DataOptions.from_values({"path": DATA, "samples": 4}), model.inputs())
    signals, images = signals_of(model, source, 3)
    found = {signal.name: signal for signal in signals}
    norm = found["layer_norm"]
    assert images == 3 and norm.seen == 3 * 17 * 48 == norm.counts.sum() and norm.format == "int8"
    assert norm.high == pytest.approx(127 * norm.scale) and 0 <= norm.clipped < 0.05
    assert norm.least < 0 < norm.largest


def tuned() -> TuningDocument:
    losses = FormLoss(EVIL, "int8", 1e-3, None), FormLoss("b", "int8", None, 2e-3)
    points = [
        JudgedPoint(name, {EVIL: "int8", "b": "dense"}, share, kl, {"kl": kl}, pareto=True)
        for name, share, kl in (("uniform int8", 0.2, 1e-2), ("search, 1 moves", 0.4, 1e-3))
    ]
    return TuningDocument(
        tool="gpusq-onnx",
        model=ModelFile("model.onnx", "cd"),
        operations=2.0,
        groups=tuple(SharedGroup(name, "fc1", 0, (name,), None, {"int8": 0.5}, share=0.5) for name in (EVIL, "b")),
        sensitivity=Sensitivity("KL", 8, losses, None),
        warnings=(),
        asked="kl<=1",
        met=True,
        failure="",
        chosen=Point(points[0].name, points[0].choice, 0.2, 1e-2, {"kl": 1e-2}),
        pipeline="qdq-int8",
        layers=(ReasonedLayer("b", ("b",), "int8", 0.5, 2e-3, "cheap"),),
        points=tuple(points),
        calibrated=4,
        measured=4,
    )


def test_sensitivity_and_the_pareto_curve() -> None:
    sections = list(of_tune(tuned()))
    found = read(render("tuned", sections))
    assert [section.title for section in sections] == ["Choice", "Sensitivity"]
    assert ["uniform int8", "20.0%", "-", "1.00e-02", "0.01", "chosen"] in found.rows
    assert ["b", "50.0%", "~2.00e-03"] in found.rows and [EVIL, "50.0%", "1.00e-03"] in found.rows
    assert found.tags.count("script") == 1 and found.tags.count("svg") == 2


def test_what_tune_writes_is_what_the_page_reads() -> None:
    document = tuned()
    again = TypeAdapter(TuningDocument).validate_json(json.dumps(document.to_dict()))
    assert again == document and list(of_tune(again)) == list(of_tune(document))


@pytest.mark.long
def test_a_tuned_model_has_a_page(tmp_path: Path) -> None:
    words = ["tune", "--budget", "kl<=1", "--forms", "int8", "--exact", "0", "--samples", "24", "--data", DATA]
    words += ["--no-cache", "--report", tmp_path / "t.json", "-o", tmp_path / "r.toml", MODEL, "-q"]
    assert main(list(map(str, words))) == 0
    assert main(["report", str(tmp_path / "t.json"), "-q"]) == 0
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "budget met" in text and "KL divergence" in text
    assert json.loads((tmp_path / "t.json").read_text())["met"]


def test_names_of_models_stay_text() -> None:
    layer = LayerRow(EVIL, EVIL, EVIL, (4, 4), EVIL, EVIL, EVIL, 0.5, 0.1, (1.0, 1.0, 1.0))
    histogram = pictures.HistogramBars(EVIL, [0, 1, 2], [1.0, 2.0])
    section = page_models.of_layers(EVIL, [layer], [histogram], {EVIL: 0.5}, "salt")
    gallery = Section(EVIL, [Gallery(EVIL, [Shot("data:image/png;base64,AA==", EVIL, EVIL)])])
    text = render(EVIL, [section, gallery])
    found = read(text)
    assert found.tags.count("script") == 1 and "img" in found.tags
    assert text.count("<script") == 1 and "<!--" not in text
    assert any(row and row[0] == EVIL for row in found.rows)


def test_charts_follow_the_theme() -> None:
    svg = pictures.ratios({"bytes": (2.0, 1.0)})
    assert "currentColor" in svg and "var(--after)" in svg and "#010203" not in svg
    assert not re.search(r"(?:href|url)\(?[\"']?https?:", svg)
