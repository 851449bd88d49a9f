"""`report` with models and data: what it adds to the page, and when it takes the reports' own models."""

from pathlib import Path

import pytest

from gpusq_onnx.cli import main
from gpusq_onnx.errors import UsageError
from gpusq_onnx.workflows.report import report

pytest.importorskip("jinja2", reason="needs the extra report")
pytest.importorskip("matplotlib", reason="needs the extra report")

ASSETS = Path(__file__).parents[1] / "assets"
MODEL, DATA = ASSETS / "digits_vit.onnx", ASSETS / "digits_test.npz"


@pytest.fixture
def applied(tmp_path: Path) -> Path:
    """The report of a run whose model lies where it says."""
    small, written = tmp_path / "small.onnx", tmp_path / "apply.json"
    words = ["apply", "--passes", "prune24,qdq-int8", "--data", DATA, "--samples", "8", "--report", written]
    assert main([*map(str, words), "-o", str(small), str(MODEL), "-q"]) == 0
    return written


@pytest.mark.long
def test_the_models_of_a_report_are_shown_while_they_are_what_they_were(applied: Path) -> None:
    text = report([applied]).read_text(encoding="utf-8")
    assert "Layers: small.onnx" in text and "that TensorRT can choose for the weights: 2 dense FP32, 12 dense" in text
    assert "Activations" not in text and "<img" not in text
    small = applied.with_name("small.onnx")
    small.write_bytes(small.read_bytes() + b"\0")
    text = report([applied]).read_text(encoding="utf-8")
    assert "Layers" not in text and "that TensorRT can choose" not in text
    with pytest.raises(UsageError, match="example images are for models"):
        report([applied], data=DATA)


@pytest.mark.long
def test_with_data_it_shows_activations_and_where_the_models_look(applied: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra train")
    page = report([applied], data=DATA, data_options={"samples": 4})
    text = page.read_text(encoding="utf-8")
    assert "output&#39;s distance" in text and "Activations: small.onnx" in text
    assert text.count("<img src=") == 4 * (1 + 2 * 2)


@pytest.mark.long
def test_models_can_be_named(applied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--model", MODEL, "--model", MODEL]
    assert main([*map(str, ["report", applied, *models, "-o", tmp_path / "page.html"])]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Layers: digits_vit.onnx" in text and "Layers: small.onnx" not in text
    before = applied.with_name("small.onnx").read_bytes()
    small = str(applied.with_name("small.onnx"))
    assert main(["report", str(applied), "--model", str(MODEL), "--model", small, "-o", small]) == 2
    assert main(["report", str(applied), "--model", str(tmp_path / "none.onnx")]) == 2
    assert applied.with_name("small.onnx").read_bytes() == before
