"""qat: scales chosen again and learned, weights of the maps from D_i, teachers, and 2:4 down to the codes."""

from pathlib import Path

import numpy as np
import pytest

from gpusq_onnx.pipeline.run import RunOptions

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from gpusq_onnx.data.options import DataOptions  # noqa: E402
from gpusq_onnx.errors import UnsupportedModelError, UsageError  # noqa: E402
from gpusq_onnx.graph import io  # noqa: E402
from gpusq_onnx.graph.qdq.codes import codes_of, weight_scales_of  # noqa: E402
from gpusq_onnx.graph.structure import analyse  # noqa: E402
from gpusq_onnx.learn.factors import weight_factors  # noqa: E402
from gpusq_onnx.learn.rescaling import recalibrate, scale_values  # noqa: E402
from gpusq_onnx.pipeline import manager  # noqa: E402
from gpusq_onnx.pipeline.grammar import parse  # noqa: E402
from gpusq_onnx.sparsity.patterns import PAIRS_48, Pattern  # noqa: E402

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "digits_vit.onnx"
DATA = DataOptions(path=ASSETS / "digits_train.npz", samples=64)
SHORT = "steps=8 batch=8 precision=float32 device=cpu"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qat") / "quantised.onnx"
    manager.run(MODEL, path, parse("prune24{method=magnitude},qdq-int8"), RunOptions(DATA))
    return path


@pytest.mark.long
def test_in_a_pipeline_it_learns_scales_and_keeps_codes_sparse(tmp_path: Path) -> None:
    text = f"prune24{{method=magnitude}},qdq-int8,qat{{features=blocks factors=inverse {SHORT}}}"
    outcome = manager.run(MODEL, tmp_path / "out.onnx", parse(text), RunOptions(DATA))
    found = outcome.steps[2].findings
    assert found["recalibrated"] == 12
    assert found["factors"].keys() == found["distances"].keys() and len(found["factors"]) >= 3
    assert list(found["factors"].values()) == weight_factors(list(found["distances"].values()), "inverse")
    assert all(d > 0.001 for d in found["distances"].values()), "pruning moved every map"
    ratios = np.array([after / before for before, after in found["movement"].values()])
    assert (ratios != 1).mean() > 0.9 and (np.abs(np.log(ratios)) < 0.1).all()
    model = io.load(tmp_path / "out.onnx")
    sparse = [site for site in analyse(model).sites if site.quantised and Pattern(2, 4).holds(codes_of(site))]
    assert len(sparse) == 12
    assert any("Q/DQ" in fact for fact in outcome.steps[2].facts)


@pytest.mark.long
@pytest.mark.parametrize(
    ("passes", "given", "rates"),
    [
        ("qdq-int4", "", {"lr": 1e-4, "vector_lr": 1.0, "scale_lr": 1.0}),
        ("qdq-int4", "lr=4e-6", {"vector_lr": 1.0, "scale_lr": 1.0}),
        ("qdq-int8", "", None),
    ],
)
def test_four_bits_take_larger_steps_where_none_are_given(
    passes: str, given: str, rates: dict[str, float] | None, tmp_path: Path
) -> None:
    text = f"{passes},qat{{steps=1 batch=2 images=2 gamma=0 device=cpu {given}}}"
    outcome = manager.run(MODEL, tmp_path / "out.onnx", parse(text), RunOptions(DataOptions(path=DATA.path, samples=4)))
    assert outcome.steps[1].findings.get("rates") == rates
    (row,) = outcome.steps[1].findings["curve"]
    assert row["lr"] == pytest.approx(1e-4 if rates and not given else 4e-6)


@pytest.mark.long
def test_weights_that_rounding_set_to_zero_learn_too(tmp_path: Path) -> None:
    prune, four = "prune{pattern=4:8pair method=magnitude}", "qdq-int4{activations=int4}"
    sparse, coded, both, alone = (tmp_path / f"{name}.onnx" for name in ("sparse", "coded", "both", "alone"))
    for source, output, text in (
        (MODEL, sparse, prune),
        (MODEL, coded, f"{prune},{four}"),
        (MODEL, both, f"{prune},{four},qat{{lr=1e-2 {SHORT}}}"),
        (coded, alone, f"qat{{lr=1e-2 {SHORT}}}"),
    ):
        manager.run(source, output, parse(text), RunOptions(DATA))
    before, start = ({s.name: s.read() for s in analyse(io.load(path)).sites} for path in (sparse, coded))
    for path in (both, alone):
        sites = [site for site in analyse(io.load(path)).sites if site.quantised == "qdq"]
        assert len(sites) == 12
        for site in sites:
            assert PAIRS_48.holds(site.read()) and PAIRS_48.holds(codes_of(site))
        woken = [((start[s.name] == 0) & (s.read() != 0)).mean() for s in sites]
        assert min(woken) > 0, path
    for site in (site for site in analyse(io.load(both)).sites if site.quantised == "qdq"):
        assert not site.read()[before[site.name] == 0].any()


@pytest.mark.slow
def test_alone_it_learns_from_its_own_float_twin(quantised: Path, tmp_path: Path) -> None:
    outcome = manager.run(quantised, tmp_path / "out.onnx", parse(f"qat{{{SHORT}}}"), RunOptions(DATA))
    found = outcome.steps[0].findings
    assert found["masks"]["weights"] == 12
    assert 0 < found["soft"]["before"] < 0.05, "rounding alone lies between the two"
    assert set(found["factors"].values()) == {1.0} and "distances" not in found
    assert any("every w_i is 1" in warning for warning in outcome.warnings)


@pytest.mark.slow
def test_teacher_and_dense_model_may_be_files(quantised: Path, tmp_path: Path) -> None:
    twin = manager.run(quantised, tmp_path / "twin.onnx", parse(f"qat{{{SHORT}}}"), RunOptions(DATA)).steps[0].findings
    text = f"qat{{dense={MODEL} factors=none against=dense {SHORT}}}"
    dense = manager.run(quantised, tmp_path / "out.onnx", parse(text), RunOptions(DATA)).steps[0].findings
    assert dense["soft"]["before"] > 2 * twin["soft"]["before"], "the dense model is further away than the twin"


@pytest.mark.slow
def test_without_a_word_the_dense_model_teaches_where_it_is_known(quantised: Path, tmp_path: Path) -> None:
    def learned(text: str) -> tuple[float, float]:
        (step,) = manager.run(quantised, tmp_path / "out.onnx", parse(f"qat{{{text} {SHORT}}}"), RunOptions(DATA)).steps
        return step.findings["soft"]["before"], step.findings["soft"]["after"]

    known = f"dense={MODEL} factors=none"
    assert learned(known) == learned(f"{known} against=dense") != learned(f"{known} against=sparse")
    assert learned("") == learned("against=sparse")


@pytest.mark.long
def test_stored_codes_stay_and_their_scales_learn(tmp_path: Path) -> None:
    coded, output = tmp_path / "coded.onnx", tmp_path / "out.onnx"
    manager.run(MODEL, coded, parse("prune24{method=magnitude},qdq-int8{weights=int8}"), RunOptions(DATA))
    manager.run(coded, output, parse(f"qat{{{SHORT}}}"), RunOptions(DATA))
    before, after = (
        {site.name: site for site in analyse(io.load(path)).sites if site.quantised == "int8"}
        for path in (coded, output)
    )
    assert len(before) == 12
    for name, site in before.items():
        np.testing.assert_array_equal(after[name].read(), site.read())
    assert any(
        (weight_scales_of(after[name]).values != weight_scales_of(site).values).any() for name, site in before.items()
    )


def test_weight_scales_are_chosen_again_on_the_weights_as_they_are(quantised: Path) -> None:
    model = io.load(quantised)
    site = next(site for site in analyse(model).sites if site.quantised == "qdq")
    right = weight_scales_of(site).values
    site.write((site.read() * np.float32(4)).astype(np.float32))
    assert recalibrate(analyse(model).sites) == 1  # the others are on their grids: no scale is better than theirs
    np.testing.assert_allclose(weight_scales_of(site).values, 4 * right, rtol=1e-2)
    assert len(scale_values(model)) > 12


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("qat", UnsupportedModelError, "is not quantised"),
        ("qdq-int8,qat{against=dense}", UsageError, "needs the dense model"),
        ("qdq-int8,qat{dense=nowhere.onnx}", UsageError, "there is no model"),
    ],
)
def test_what_it_refuses(text: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        manager.run(MODEL, tmp_path / "out.onnx", parse(text), RunOptions(DATA))
    assert not list(tmp_path.iterdir())
