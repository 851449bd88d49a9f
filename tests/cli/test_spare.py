"""No verb writes over a file that is not ours without `--force`; what it wrote itself is made anew, whatever it is."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from command_line import MODEL, call
from desk import unchanged
from PIL import Image

from gpusq_onnx import marks
from gpusq_onnx.cli import spare

DIARY, JSON, OTHER = b"a diary", b'{"tool": "another", "steps": []}', MODEL.read_bytes()
PRUNE = "-q -p prune24{method=magnitude}"
PLACES = [  # the verb with its words, the file that must be spared, and what somebody has in it
    (f"apply {PRUNE} -o FILE model.onnx", "small.onnx", OTHER),
    (f"apply {PRUNE} -o out/ model.onnx", "out/model.onnx", DIARY),
    (f"apply {PRUNE} --report FILE model.onnx", "r.json", JSON),
    (f"apply {PRUNE} --report r.json model.onnx", "r.md", DIARY),
    (f"apply {PRUNE} --json FILE model.onnx", "j.json", DIARY),
    (f"plan {PRUNE} --report FILE model.onnx", "r.json", b"[" * 10_000),
    ("inspect --json FILE model.onnx", "j.json", JSON),
    ("passes list --json FILE", "j.json", DIARY),
    ("passes show prune24 --json FILE", "j.json", JSON),
    ("passes show sparse-int8 --json FILE", "j.json", DIARY),
    ("passes show targets --json FILE", "j.json", JSON),
    ("passes show ada --json FILE", "j.json", DIARY),
    ("check --samples 2 --report FILE model.onnx model.onnx", "r.json", JSON),
    ("check --samples 2 --json FILE model.onnx model.onnx", "j.json", OTHER),
    ("check --samples 2 --artefacts kept model.onnx model.onnx", "kept/inputs.json", JSON),
    (
        "check --samples 2 --artefacts kept model.onnx model.onnx",
        "kept/outputs.json",
        b'{"lst": [["onnxrt-runner", []]]}',
    ),
    ("pack -o FILE pruned.onnx", "p.gpusq", DIARY),
    ("pack --json FILE pruned.onnx", "j.json", JSON),
    ("unpack -o FILE pruned.gpusq", "back.onnx", OTHER),
    ("unpack pruned.gpusq", "pruned.onnx", OTHER),
    pytest.param("report report.json", "report.html", b"<html></html>", marks=pytest.mark.long),
    pytest.param("report -o FILE report.json", "page.html", DIARY, marks=pytest.mark.long),
]
SLOW = [  # those that need a GPU or much time: only that they refuse at once, and that --force goes past that
    ("tune --budget kl<=1 model.onnx", "model.recipe.toml"),
    ("tune --budget kl<=1 --report FILE model.onnx", "r.json"),
    ("cam model.onnx", "model.cam.html"),
    ("cam -o FILE model.onnx", "where.svg"),
    ("cam -o out/ model.onnx", "out/index.html"),
    ("cam -o out/ model.onnx", "out/01-image.jpg"),
    ("cam --json FILE model.onnx", "j.json"),
    ("build --cpu-harness none --min-sparse-chosen 1 model.onnx", "model.plan"),
    ("build --cpu-harness none --min-sparse-chosen 1 model.onnx", "model.plan.json"),
    ("build --cpu-harness none --min-sparse-chosen 1 --log FILE model.onnx", "b.log"),
    ("bench --backend torch-cpu --batch 0 --chart FILE model.onnx", "chart.png"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, what `apply` and `pack` made of it, and a report."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(MODEL, folder / "model.onnx")
    words = [*PRUNE.split(), "-o", folder / "pruned.onnx", "--report", folder / "report.json", folder / "model.onnx"]
    assert call("apply", *words).code == 0
    assert call("pack", "-q", folder / "pruned.onnx").code == 0
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "desk"))
    return Path()


def written(words: str, file: str) -> list[str]:
    return words.replace("FILE", file).split()


@pytest.mark.parametrize(("words", "file", "content"), PLACES)
def test_a_file_of_somebody_else_is_spared_and_ours_made_anew(
    words: str, file: str, content: bytes, desk: Path
) -> None:
    if words.startswith("report"):
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
    place = desk / file
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    with unchanged(desk):
        refused = call(*written(words, file))
    assert refused.code == 2 and "--force" in refused.err and file in refused.err
    assert call(*written(words, file), "--force").code == 0
    assert place.read_bytes() != content
    again = call(*written(words, file))
    assert again.code == 0, again.err


def test_data_beside_a_model_is_spared_unless_that_model_is_ours(desk: Path) -> None:
    words = [*PRUNE.split(), "-o", "small.onnx", "model.onnx"]
    (desk / "small.onnx.data").write_bytes(DIARY)
    with unchanged(desk):
        refused = call("apply", *words)
    assert refused.code == 2 and "small.onnx.data" in refused.err and "--force" in refused.err
    shutil.copy(desk / "pruned.onnx", desk / "small.onnx")
    assert call("apply", *words).code == 0


@pytest.mark.parametrize(("words", "file"), SLOW)
def test_it_is_spared_before_the_work(words: str, file: str, desk: Path) -> None:
    if words.startswith(("cam", "bench")):
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
    place = desk / file
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"a diary")
    with unchanged(desk):
        refused = call(*written(words, file))
        forced = call("--force", *written(words, file))
    assert refused.code == 2 and "did not write it" in refused.err and file in refused.err
    assert "did not write it" not in forced.err and forced.code != 0  # what stops it is another thing


def test_an_empty_file_and_what_a_link_does_not_lead_to_are_written(desk: Path) -> None:
    (desk / "r.json").touch()
    (desk / "r.md").symlink_to("nowhere")
    assert call("plan", *PRUNE.split(), "--report", "r.json", "model.onnx").code == 0
    assert json.loads((desk / "r.json").read_text())["tool"] == marks.AUTHOR


def test_a_plain_model_is_unpacked_onto_itself(desk: Path) -> None:
    """A model that another tool pruned has no metadata of ours: its bytes say what it is."""
    import onnx

    proto = onnx.load(desk / "pruned.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, desk / "plain.onnx")
    assert call("pack", "-q", "plain.onnx").code == 0
    for _ in range(2):
        assert call("unpack", "-q", "plain.gpusq", "-o", "restored.onnx").code == 0
    assert (desk / "restored.onnx").read_bytes() == (desk / "plain.onnx").read_bytes()
    onnx.save(onnx.load(MODEL), desk / "restored.onnx")
    assert call("unpack", "-q", "plain.gpusq", "-o", "restored.onnx").code == 2


def test_an_engine_is_ours_while_its_card_says_so(tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"ptrt engine")
    with pytest.raises(OSError):
        spare.an_engine(plan)
    card = plan.with_name("m.plan.json")
    card.write_text(json.dumps({"sha256": sha256(plan.read_bytes()).hexdigest(), "bytes": 11, "deployable": True}))
    assert spare.an_engine(plan) and spare.an_engine_card(card)
    plan.write_bytes(b"ptrt another")
    assert not spare.an_engine(plan)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".jpg"])
def test_pictures_have_the_mark(suffix: str, tmp_path: Path) -> None:
    ours, other = tmp_path / f"ours{suffix}", tmp_path / f"other{suffix}"
    if suffix == ".jpg":
        from gpusq_onnx.data.encode import encoded

        pixels = np.zeros((8, 8, 3), np.uint8)
        ours.write_bytes(encoded(pixels, "JPEG"))
        Image.fromarray(pixels).save(other)
    else:
        figure = pytest.importorskip("matplotlib.figure").Figure()
        figure.suptitle("gpusq-onnx")
        figure.savefig(ours, metadata=marks.of_picture(suffix))
        figure.savefig(other)
    assert marks.in_picture(ours) and not marks.in_picture(other)


def test_the_marks_of_a_recipe_and_a_log(tmp_path: Path) -> None:
    (tmp_path / "ours").write_text(f"{marks.first_line('tune')}[[pass]]\n")
    (tmp_path / "other").write_text(f"[[pass]]\n{marks.first_line('tune')}")
    assert marks.in_first_line(tmp_path / "ours") and not marks.in_first_line(tmp_path / "other")


def test_what_somebody_has_edited_is_theirs(tmp_path: Path) -> None:
    recipe, digest = tmp_path / "recipe.toml", tmp_path / "report.md"
    recipe.write_bytes((marks.first_line("tune", "[[pass]]\n") + "[[pass]]\n").encode())
    digest.write_bytes(marks.with_mark("# A model\n\nsmaller").encode())
    assert marks.in_first_line(recipe) and marks.in_digest(digest)
    recipe.write_bytes(recipe.read_bytes() + b"# mine\n")
    digest.write_bytes(digest.read_bytes().replace(b"smaller", b"smaller, and why"))
    assert not marks.in_first_line(recipe) and not marks.in_digest(digest)
