"""Second-order rounding in a pipeline: closer to the dense model, patterns kept, scales where the graph has them."""

from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.calibration.rounding import WeightGrid, round_weights
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.codes import codes_of, set_weight_scales, weight_scales_of
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.passes.prune import Prune24
from gpusq_onnx.passes.qdq import Qdq, QdqInt8
from gpusq_onnx.pipeline.base import Context, PlanContext
from gpusq_onnx.quant import schemes
from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import INT4, INT4_IN_INT8, fake_quantize
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.sparsity.patterns import TWO_FOUR

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ["digits_vit.onnx", "digits_vit_legacy17.onnx"]


def _load(name: str = MODELS[0]) -> Model:
    return io.load(ASSETS / name)


def _data(model: Model, file: str, samples: int):  # type: ignore[no-untyped-def]
    inputs = [InputSpec(s.name, s.dtype, s.shape) for s in model.inputs()]
    return open_source(DataOptions(path=ASSETS / file, samples=samples), inputs)


def _quantise(model: Model, **options: object) -> None:
    quantise, structure = Qdq(Qdq.Options(**options)), analyse(model)
    context = Context(source=_data(model, "digits_train.npz", 64))
    quantise.apply(model, structure, quantise.plan(model, structure, PlanContext(data=True)), context)


def _divergence(model: Model) -> float:
    """KL of the test images' class probabilities from the dense model's."""

    def logs(of: Model) -> np.ndarray:
        session = Session(io.to_bytes(of), exact_qdq=True)
        z = np.concatenate([session.run(b.feed)["logits"] for b in _data(of, "digits_test.npz", 128).batches(64)])
        z = z.astype(np.float64) - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    dense, found = logs(_load()), logs(model)
    return float((np.exp(dense) * (dense - found)).sum(axis=1).mean())


def _linears(model: Model) -> list[Site]:
    return [site for site in analyse(model).sites if site.role not in ("patch_embed", "head")]


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_it_is_closer_to_the_dense_model_than_rounding_to_nearest(name: str) -> None:
    found = []
    for rounding in ("gptq", "nearest"):
        model = _load(name)
        _quantise(model, scheme="w4a8", rounding=rounding)
        found.append(_divergence(model))
    assert found[0] < 0.5 * found[1]


@pytest.mark.long
def test_weights_lie_on_their_grid_and_keep_their_pattern() -> None:
    model = _load()
    prune, structure = Prune24(Prune24.Options(method="magnitude")), analyse(model)
    prune.apply(model, structure, prune.plan(model, structure, PlanContext()), Context())
    _quantise(model, scheme="w4a8")
    sites = [site for site in analyse(model).sites if site.quantised]
    assert len(sites) == 12
    for site in sites:
        scales, w = weight_scales_of(site), site.read()
        np.testing.assert_array_equal(fake_quantize(w, scales, INT4_IN_INT8), w)
        assert TWO_FOUR.holds(codes_of(site))


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_weights_alone_are_rounded_before_they_have_pairs(name: str) -> None:
    found = []
    for second_order in (True, False):
        model = _load(name)
        sites = _linears(model)
        plain = {site.name: Scales(weight_scales(site.read(), INT4, block=16), 1, 16) for site in sites}
        if second_order:
            context = Context(source=_data(model, "digits_train.npz", 64))
            scales = round_weights(model, [WeightGrid(site, INT4, plain[site.name]) for site in sites], context)
            assert context.findings["images"] == 64
            for site in sites:
                np.testing.assert_array_equal(fake_quantize(site.read(), scales[site.name], INT4), site.read())
        else:
            for site in sites:
                site.write(fake_quantize(site.read(), plain[site.name], INT4))
        found.append(_divergence(model))
    assert found[0] < 0.5 * found[1]


def test_scales_in_blocks_stay_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    row = schemes.Scheme("w4-blocks", INT4_IN_INT8, None, None, 16)
    monkeypatch.setitem(schemes._SCHEMES, row.name, row)
    model = _load()
    _quantise(model, scheme=row.name)
    for site in (site for site in analyse(model).sites if site.quantised):
        scales = weight_scales_of(site)
        assert scales.values.shape == (site.out, site.k // 16)
        np.testing.assert_array_equal(fake_quantize(site.read(), scales, INT4_IN_INT8), site.read())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block", [0, 16])
def test_the_scales_of_a_pair_can_be_set(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    row = schemes.Scheme("toy", INT4_IN_INT8, None, None, block)
    monkeypatch.setitem(schemes._SCHEMES, row.name, row)
    model = _load(name)
    _quantise(model, scheme=row.name, rounding="nearest")
    for site in (site for site in analyse(model).sites if site.quantised):
        old = weight_scales_of(site)
        factors = np.linspace(1, 2, old.values.size, dtype=np.float32).reshape(old.values.shape)
        wanted = Scales(old.values * factors, old.axis, block)
        np.testing.assert_array_equal(set_weight_scales(site, wanted).values, wanted.values)
        np.testing.assert_array_equal(weight_scales_of(site).values, wanted.values)


def test_auto_is_gptq_for_four_bits_with_data() -> None:
    model = _load()
    structure = analyse(model)
    for quantise, data, expected in (
        (Qdq(Qdq.Options(scheme="w4a8")), True, "gptq"),
        (Qdq(Qdq.Options(scheme="w4a8")), False, "nearest"),
        (Qdq(Qdq.Options(scheme="w4a8", rounding="nearest")), True, "nearest"),
        (QdqInt8(QdqInt8.Options()), True, "nearest"),
        (QdqInt8(QdqInt8.Options(rounding="gptq")), True, "gptq"),
    ):
        rows = [
            row for row in quantise.plan(model, structure, PlanContext(data=data)) if row.decision == "quantise weight"
        ]
        assert {row.detail.rounding for row in rows} == {expected}
        assert all(("GPTQ" in row.reason) == (expected == "gptq") for row in rows)
