"""The page of `report`: what is on it, that it is complete in itself, and what is refused."""

import json
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_engine_report import recorded

from gpusq_onnx.cli import main
from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.graph.cost import MEASURES
from gpusq_onnx.report.benchmark import Benchmark, BenchmarkRow, Cell
from gpusq_onnx.report.page import html as page
from gpusq_onnx.report.reading import page_of
from gpusq_onnx.runtime.bench.timing import Rounds

pytest.importorskip("jinja2", reason="needs the extra report")
pytest.importorskip("matplotlib", reason="needs the extra report")

ASSETS = Path(__file__).parents[1] / "assets"
VOID = {"meta", "br", "hr", "link", "img", "input"}
CURVE = [
    {"step": step, "epoch": 0, "loss": 3 / step, "soft": 1 / step, "feature.0": 0.5, "lr": 1e-4} for step in range(1, 9)
]
LEARNED = {
    "curve": CURVE,
    "distances": {"add_251": 0.25},
    "factors": {"add_251": 1.0},
    "movement": {"s<1>": [0.5, 0.25]},
    "masks": {"weights": 12, "checks": 8},
    "agreement": {"images": 16, "before": 0.5, "after": 0.75},
}


class Reader(HTMLParser):
    """Text, tags and table rows of a page; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By verb: reports of `plan`, of `apply` (with findings of training put in) and of `check` on the digits model."""
    folder = tmp_path_factory.mktemp("reports")
    model, small, data = ASSETS / "digits_vit.onnx", folder / "small.onnx", ASSETS / "digits_test.npz"
    paths = {verb: folder / f"{verb}.json" for verb in ("plan", "apply", "check")}
    pipeline = ["--passes", "prune24{method=magnitude},qdq-int8", "--data", data, "--samples", "8"]
    gates = ["--taps", "all", "--min-agreement", "0.5", "--min-cosine", "1", "--samples", "8", "--data", data]
    assert main(list(map(str, ["plan", *pipeline, "--report", paths["plan"], model, "-q"]))) == 0
    assert main(list(map(str, ["apply", *pipeline, "--report", paths["apply"], "-o", small, model, "-q"]))) == 0
    assert main(list(map(str, ["check", *gates, "--report", paths["check"], model, small, "-q"]))) == 1
    document = json.loads(paths["apply"].read_text())
    document["steps"][0]["findings"].update(LEARNED)
    document["warnings"] = ["<script>alert(1)</script> & more"]
    paths["apply"].write_text(json.dumps(document))
    return paths


def test_one_page_of_apply_and_check(reports: dict[str, Path]) -> None:
    text = page_of([reports["apply"], reports["check"]])
    found = read(text)
    applied = json.loads(reports["apply"].read_text())
    headings = ["Summary", "What was done", "Totals", "Training: prune24", "Weights", "Passes", "Comparison"]
    headings += ["Inner tensors"]
    assert [heading for heading in headings if heading not in found.text] == []
    weights = {row[0]: row for row in found.rows if row and row[0] in applied["before"]["sites"]}
    assert set(weights) == set(applied["before"]["sites"])
    row = weights["val_13"]
    assert row[2] == "qkv" and row[4].startswith("prune 2:4") and row[5].startswith("quantise weight INT8")
    assert row[-3:] == ["27,648", "4,320", "0.156"]
    totals = {row[0]: row for row in found.rows}
    sides = [applied[side]["total"] for side in ("before", "after")]
    for key, text in MEASURES.items():
        before, after = (side[key] for side in sides)
        assert totals[text][3] == ("unchanged" if before == after else f"{after / before:.3f}")
    assert totals["dense MACs"][3] == "unchanged" and float(totals["sparse MACs"][3]) < 0.6
    assert totals["top-1"][3].endswith(" points") and totals["top-1 agreement"][2].endswith("%")
    assert ["add_251", "0.25", "1"] in found.rows and ["s<1>", "0.5", "0.25", "0.5"] in found.rows
    assert "50.0% -> 75.0%" in found.text and "Gates not met" in found.text and "output logits has cosine" in found.text
    assert found.tags.count("svg") == 5
    assert "loss, soft, by step" in found.text and "1 feature maps, by step" in found.text


def test_an_engine_shows_prediction_and_truth(tmp_path: Path) -> None:
    report = tmp_path / "engine.json"
    truth = recorded(tmp_path, "trt10.log", "trt10.json")
    report.write_text(json.dumps(truth.to_dict()))
    found = read(page_of([report]))
    rows = {row[0]: row for row in found.rows}
    assert {weight.name for weight in truth.weights} < set(rows)
    assert "chosen of" in found.text


def test_a_benchmark_shows_its_table_and_its_machine(tmp_path: Path) -> None:
    cell = Cell(0.5, 0.4, 0.6, 3, 2.0, None, (0.5,))
    machine = {"gpu": {"name": "H100"}, "cpu": "a CPU", "versions": {"torch": "2.13"}}
    found = Benchmark(
        "torch",
        machine,
        Rounds(),
        "TF32",
        (BenchmarkRow("m.onnx", "INT8 2:4", True, 1.0, 2.0, {8: cell}),),
        ("a note",),
    )
    (tmp_path / "bench.json").write_text(json.dumps(found.to_dict()))
    page = read(page_of([tmp_path / "bench.json"]))
    assert ["m.onnx", "INT8 2:4", "1", "2", "16 (2.00x)", "-", "40.0%"] in page.rows
    assert "GPU: H100" in page.text and "a note" in page.text


def test_the_speed_on_top_is_that_of_a_model_that_was_made(tmp_path: Path) -> None:
    rows = [
        BenchmarkRow(name, kind, True, 1.0, 2.0, {8: Cell(0.5, 0.4, 0.6, 3, speed, None, (0.5,))})
        for name, kind, speed in (("m", "FP32", 1.0), ("small", "INT8 2:4", 0.5))
    ]
    found = Benchmark("torch", {"cpu": "a CPU", "versions": {}}, Rounds(), "FP32", tuple(rows), ())
    (tmp_path / "bench.json").write_text(json.dumps(found.to_dict()))
    assert "0.50x" in (text := read(page_of([tmp_path / "bench.json"])).text) and "FP32 over FP32" not in text


def test_what_calibrates_is_counted(reports: dict[str, Path], tmp_path: Path) -> None:
    report = json.loads(reports["apply"].read_text())
    report["data"] |= {"samples": 64, "options": {**report["data"]["options"], "calibrate": 32}}
    (tmp_path / "apply.json").write_text(json.dumps(report))
    assert "32 samples of arrays" in read(page_of([tmp_path / "apply.json"])).text


def test_the_page_stands_alone_and_shows_markup_as_text(reports: dict[str, Path]) -> None:
    text = page_of([reports["apply"]])
    found = read(text)
    assert found.tags.count("script") == 1 and "alert" not in text.partition("<script>")[2]
    digest = b64encode(sha256(text.partition("<script>")[2].partition("</script>")[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text and "default-src 'none'" in text
    assert [link for link in found.links if not link.startswith("#")] == []
    assert "@import" not in text and "url(http" not in text
    assert "<script>alert(1)</script> & more" in found.text


@pytest.mark.long
def test_pictures_on_one_page_share_no_identifier(reports: dict[str, Path]) -> None:
    import re

    identifiers = list(re.findall(r'<clipPath id="([^"]+)"', page_of([reports["apply"], reports["check"]])))
    assert identifiers and len(identifiers) == len(set(identifiers))


@pytest.mark.long
def test_the_same_report_gives_the_same_bytes(reports: dict[str, Path], tmp_path: Path) -> None:
    assert page_of([reports["apply"]]) == page_of([reports["apply"]])
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for one in pages:
        assert main(["report", str(reports["plan"]), "-o", str(one)]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_plan_says_what_would_be_done(reports: dict[str, Path]) -> None:
    found = read(page_of([reports["plan"]]))
    assert "What would be done" in found.text and "after (estimate)" in found.text


@pytest.mark.long
def test_the_page_lies_beside_the_report_by_default(reports: dict[str, Path]) -> None:
    assert main(["report", str(reports["check"])]) == 0
    assert "Comparison" in read(reports["check"].with_suffix(".html").read_text()).text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "found: a JSON list"),
        ('{"a": 1}', "keys a"),
        ('{"steps": 3}', "pipeline: Field required"),
        ('{"comparison": {}}', "Field required"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        page_of([tmp_path / "x.json"])
    assert main(["report", str(tmp_path / "x.json")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_report_is_not_overwritten_and_must_exist(reports: dict[str, Path], tmp_path: Path) -> None:
    before = reports["plan"].read_bytes()
    assert main(["report", str(reports["plan"]), "-o", str(reports["plan"])]) == 2
    assert reports["plan"].read_bytes() == before
    assert main(["report", str(tmp_path / "none.json")]) == 2


def test_without_the_extra_it_says_what_to_install(reports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacking, match=r"gpusq-onnx\[report\]"):
        page_of([reports["plan"]])
