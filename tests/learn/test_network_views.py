"""Views of one network: cut at the maps and on some tokens, they compute what the whole one would."""

from pathlib import Path

import classroom
import numpy as np
import onnx_graphsurgeon as gs
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.graph import io  # noqa: E402
from gpusq_onnx.graph.model import Model  # noqa: E402
from gpusq_onnx.graph.structure import analyse  # noqa: E402
from gpusq_onnx.graph.tokens import TokenLayout, token_layout  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402
from gpusq_onnx.learn.setup import Setup, phases, prepare  # noqa: E402
from gpusq_onnx.learn.views import Tokens, thin  # noqa: E402
from gpusq_onnx.torchgraph.convert import convert  # noqa: E402

BOTH = TrainingOptions(blockwise=0.5, tokens=0.5, thinned=0.75, features="blocks")
LEGACY = classroom.ASSETS / "digits_vit_legacy17.onnx"


def _lesson(path: Path, settings: TrainingOptions = BOTH) -> Setup:
    model = io.load(path)
    return prepare(model, analyse(model), classroom.pruned(), settings)


def _images() -> list[torch.Tensor]:
    batch = next(iter(classroom.data().batches(4)))
    return [torch.from_numpy(x[:4]) for x in batch.feed.values()]


def test_phases() -> None:
    assert phases(TrainingOptions()) == [(1.0, False, False)]
    assert phases(BOTH) == [(0.5, True, True), (0.75, False, True), (1.0, False, False)]
    assert phases(TrainingOptions(blockwise=0.8, tokens=0.5)) == [(0.8, True, True), (1.0, False, False)]
    assert phases(TrainingOptions(blockwise=0.3)) == [(0.3, True, False), (1.0, False, False)]


def test_tokens_in_front_of_the_patches_always_go_through() -> None:
    tokens = Tokens(TokenLayout("x", 198, range(2, 198)), 0.5)  # class and distillation token, 14 x 14 patches
    keep = tokens.draw(0, 0)
    assert len(keep) == tokens.kept == 100 and keep[:2].tolist() == [0, 1]
    assert (keep.diff() > 0).all() and keep.max() < 198
    assert keep.tolist() == tokens.draw(0, 0).tolist() != tokens.draw(0, 1).tolist()


@pytest.mark.long
@pytest.mark.parametrize("path", [classroom.MODEL, LEGACY], ids=["dynamo", "legacy"])
def test_fed_its_own_maps_a_cut_network_is_the_whole_one(path: Path) -> None:
    setup = _lesson(path, TrainingOptions(blockwise=0.5, features="blocks"))
    x = _images()
    whole = setup.student(*x)
    apart = setup.views[True, False](x, [whole[pair.student] for pair in setup.maps[:-1]], None)
    for name in whole:
        torch.testing.assert_close(apart[name], whole[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [classroom.MODEL, LEGACY], ids=["dynamo", "legacy"])
def test_with_all_tokens_a_thin_network_is_the_whole_one(path: Path) -> None:
    model = io.load(path)
    structure = analyse(model)
    taps = [block.output for block in structure.blocks]
    layout = token_layout(structure, taps)
    assert layout is not None and (layout.count, layout.patches) == (17, range(1, 17))
    tokens = Tokens(layout, 1.0)
    whole = convert(model, taps=taps)
    view = thin(model, tokens, structure.shapes, whole.outputs[:1], taps, like=whole)
    assert view is not None
    found, wanted = view(_images(), (), tokens.draw(0, 0)), whole(*_images())
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-5)


@pytest.mark.long
def test_what_one_form_learns_all_have() -> None:
    setup = _lesson(classroom.MODEL)
    assert set(setup.views) == {(False, False), (False, True), (True, True)}
    with torch.no_grad():
        for parameter in setup.student.parameters():
            parameter.mul_(0.5)
    own = {id(p) for p in setup.student.parameters()}
    for view in setup.views.values():
        assert {id(p) for p in view.parameters()} <= own
    assert {id(p) for p in setup.views[False, True].parameters()} == own


@pytest.mark.long
def test_no_gradient_crosses_from_part_to_part() -> None:
    setup = _lesson(classroom.MODEL)
    assert setup.tokens is not None and setup.thin_teacher is not None
    keep = setup.tokens.draw(0, 0)
    taught = setup.thin_teacher(_images(), (), keep)
    assert taught[setup.maps[0].teacher].shape[1] == setup.tokens.kept == 9
    given = [taught[pair.teacher] for pair in setup.maps[:-1]]
    found = setup.views[True, True](_images(), given, keep)
    found[setup.maps[1].student].square().sum().backward()
    names = setup.student.initializers
    moved = {names[n] for n, p in setup.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    blocks = analyse(io.load(classroom.MODEL)).blocks
    owned = [{str(site.weight.name) for site in block.sites} for block in blocks]
    assert owned[1] <= moved and not (owned[0] | owned[2]) & moved


def test_a_graph_that_cannot_leave_tokens_out_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_onnx.learn.setup.token_layout", lambda *rest: None)
    setup = _lesson(classroom.MODEL)
    assert set(setup.views) == {(False, False), (True, False)}
    assert any("all tokens are trained on" in note for note in setup.notes)


def _with_the_class_last(index: int) -> Model:
    """The embedded model with its tokens joined the other way round, class logits taken from token `index`."""
    model = io.load(LEGACY)
    (joined,) = (n for n in model.graph.nodes if n.op == "Concat" and n.attrs["axis"] == 1)
    joined.inputs = [joined.inputs[1], joined.inputs[0]]
    (chosen,) = (n for n in model.graph.nodes if n.op == "Gather" and n.attrs["axis"] == 1)
    chosen.inputs[1] = gs.Constant("class_token", np.array(index))
    return model


def test_tokens_after_the_patches_always_go_through() -> None:
    structure = analyse(_with_the_class_last(-1))
    layout = token_layout(structure, [block.output for block in structure.blocks])
    assert layout is not None and (layout.count, layout.patches) == (17, range(16))
    keep = Tokens(layout, 0.5).draw(0, 0).tolist()
    assert len(keep) == 9 and keep[-1] == 16


@pytest.mark.long
def test_a_graph_that_names_a_token_by_its_number_is_trained_on_all_tokens() -> None:
    model = _with_the_class_last(16)
    setup = prepare(model, analyse(model), model, BOTH)
    assert not any(thinned for _, thinned in setup.views)
