"""`report` with models and data: what it adds to the page, and when it takes the reports' own models."""

import json
import re
from pathlib import Path

import onnx
import pytest

from gpusq_onnx.cli import main
from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
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
    assert "Layers: " not in text and "such as their layers, is left out" in text
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


@pytest.fixture
def checked(applied: Path) -> Path:
    """The report of a comparison whose models lie where it says."""
    written = applied.with_name("check.json")
    words = ["check", "--samples", "2", "--report", written, MODEL, applied.with_name("small.onnx"), "-q"]
    assert main([*map(str, words)]) == 0
    return written


@pytest.mark.long
def test_a_page_of_a_check_alone_has_sizes_and_kernels(checked: Path, applied: Path) -> None:
    text = report([checked], checked.with_name("page.html")).read_text(encoding="utf-8")
    assert "x smaller" in text and "that TensorRT can choose for the weights: 2 dense FP32" in text
    assert "Layers: small.onnx" in text and "left out" not in text
    sizes = [re.search("packed [^<]*", page).group() for page in (text, report([applied]).read_text(encoding="utf-8"))]
    assert sizes[0] == sizes[1]


@pytest.mark.long
@pytest.mark.parametrize("how", ["gone", "another", "broken"])
def test_what_a_check_does_not_find_as_it_was_is_left_out_with_a_sentence(how: str, checked: Path) -> None:
    small, document = checked.with_name("small.onnx"), json.loads(checked.read_text())
    if how == "another":
        small.write_bytes(MODEL.read_bytes())
    elif how == "broken":  # an earlier build's report has no digests
        small.write_bytes(b"a diary")
        del document["sha256"]
        checked.write_text(json.dumps(document))
    else:
        small.unlink()
    text = report([checked], checked.with_name("page.html")).read_text(encoding="utf-8")
    assert "small.onnx is not there, or not what the report is about" in text
    assert "x smaller" not in text and "that TensorRT can choose" not in text and "Layers" not in text


def test_a_check_of_models_with_external_data_finds_them(tmp_path: Path) -> None:
    for name in ("dense.onnx", "other.onnx"):
        proto, data = onnx.load(MODEL), f"{name}.data"
        onnx.save(proto, tmp_path / name, save_as_external_data=True, location=data, size_threshold=1024)
    words = [
        "check",
        "--samples",
        "2",
        "--report",
        tmp_path / "c.json",
        tmp_path / "dense.onnx",
        tmp_path / "other.onnx",
    ]
    assert main([*map(str, words), "-q"]) == 0
    assert "Layers: other.onnx" in report([tmp_path / "c.json"]).read_text(encoding="utf-8")


@pytest.mark.long
def test_a_page_with_data_loads_each_model_once_and_once_to_run_it(
    applied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `check` taps is read by it: a file may meet onnxruntime in another form."""
    pytest.importorskip("torch", reason="needs the extra train")
    real, loaded = io.load, list[str]()

    def counted(path: Path) -> Model:
        loaded.append(path.name)
        return real(path)

    monkeypatch.setattr(io, "load", counted)
    monkeypatch.setattr("gpusq_onnx.report.compared_models.load", counted)
    report([applied], data=DATA, data_options={"samples": 2})
    assert sorted(loaded) == ["digits_vit.onnx"] * 2 + ["small.onnx"] * 2
