"""The paper's tables: the list of rows is whole, formulas hold on a small model, records make the page, runs resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.paper import __main__ as command
from tools.paper import columns, work
from tools.paper.page import BLOCKS, END, filled
from tools.paper.plot import draw
from tools.paper.quoted import rows_of
from tools.paper.rows import CAM, FORMATS, ORDER, REAL, ROWS, SOURCES, Row, row_of

ASSETS = Path(__file__).parents[1] / "assets"
DIGITS = Row("digits_vit", 1, "Digits", 32, 0.0, 0.0, "timm")
EMPTY = "\n".join(f"<!-- {name} -->\n{END}\n" for name in BLOCKS)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The embedded model's records, as if it were the DeiT-Tiny; no parser is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "file_of", lambda row: ASSETS / "digits_vit.onnx")
        patch.setattr(work, "_verdict", lambda *a, **k: {"ok": True, "built": True, "errors": [], "library": "none"})
        folder = tmp_path_factory.mktemp("paper")
        found = {"shapes": work.shapes(DIGITS, folder)}
        for key, form in FORMATS.items():
            found[key] = work.compressed(DIGITS, form, folder, folder)
    facts = {"status": "done", "commit": "0000000", "seconds": 1}
    return {f"deit_tiny_224.{kind}": {**facts, **record} for kind, record in found.items()}


def test_the_list_of_rows_is_whole() -> None:
    assert [sum(row.table == number for row in ROWS) for number in (1, 3, 4)] == [8, 7, 3]
    names = [row.model for row in (*ROWS, *REAL)]
    assert len(names) == len(set(names)) == 20
    assert sorted(names) == sorted(ORDER)
    assert row_of(CAM).real
    for row in ROWS:
        assert row.source in SOURCES and row.params and row.macs
        assert row.differs or row.table == 1
    with pytest.raises(KeyError, match="no row is named 'vgg'"):
        row_of("vgg")


@pytest.mark.parametrize(("key", "params", "flops", "rule"), [("int8", 6.4, 32, "2:4"), ("int4", 12.8, 64, "4:8pair")])
def test_formulas(records: dict[str, dict[str, Any]], key: str, params: float, flops: float, rule: str) -> None:
    form, dense, found = FORMATS[key], records["deit_tiny_224.shapes"], records[f"deit_tiny_224.{key}"]
    assert columns.paper_params(1e6, form) == pytest.approx(1e6 / params)
    assert columns.paper_flops(1e9, form) == pytest.approx(2e9 / flops)
    assert columns.stored_flops(32**2) == 2
    ratios = columns.ratios(dense, found)
    assert ratios["weights"] == pytest.approx(params) and ratios["products"] == pytest.approx(flops)
    # the parts of the whole: what has the format, and what stays in FP32
    formed, after = found["formed"], found["after"]
    rest = dense["dense"]["parameters"] - formed["parameters"]
    assert formed["stored_parameters"] + rest <= after["stored_parameters"]
    assert 1 < ratios["params"] < params and ratios["flops"] <= flops
    assert formed["sites"] == found["codes"]["quantised"] == found["codes"]["follow"]
    assert found["codes"]["dense"] == found["codes"]["off_grid"] == []
    assert rule in form.rule


def test_attention_counts_as_published_counts_have_it(records: dict[str, dict[str, Any]]) -> None:
    record = records["deit_tiny_224.shapes"]
    assert record["attention_macs"] > 0
    assert columns.dense_macs(record) == record["dense"]["dense_macs"] + record["attention_macs"]


@pytest.mark.parametrize(
    ("params", "tables", "reason"),
    [(10.1, 0, ""), (8.0, 2_000_000, "2.00 M elements are attention masks"), (7.0, 1, "another head")],
)
def test_a_difference_is_named(params: float, tables: int, reason: str) -> None:
    record = {"dense": {"parameters": 10_000_000, "dense_macs": 1e9}, "attention_macs": 1e7, "tables": tables}
    row = Row("m", 1, "M", 224, params, 1.0, "timm", "another head")
    assert columns.params_difference(row, record).startswith(reason)
    assert columns.flops_difference(row, record) == ""
    assert columns.flops_difference(Row("m", 1, "M", 224, params, 2.0, "timm"), record) == "not explained"


def test_the_page_shows_what_ran_and_what_did_not(records: dict[str, dict[str, Any]]) -> None:
    text = filled(EMPTY, records)
    assert filled(text, records) == text
    assert "3 of 54 steps" in text
    assert "| DeiT-Small" in text and "not run" in text
    assert "`deit_small_224.int8`" in text and "`deit_tiny_224.int8`" not in text
    assert "$ python -m tools.paper\n" in text
    assert "| DeiT-Tiny" in text and "6.40 x" in text and "12.80 x" in text and "built" in text


def test_the_picture_is_the_same_for_the_same_records(records: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw(records, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_records_of_failed_and_of_changed_steps_do_not_hold(tmp_path: Path) -> None:
    passes = work.passes_of(row_of("deit_tiny_224"), "int8")
    for kind, status, own in (("int8", "done", passes), ("int4", "done", "prune24"), ("shapes", "failed", "")):
        (tmp_path / f"deit_tiny_224.{kind}.json").write_text(json.dumps({"status": status, "passes": own}))
    assert list(command.stored(tmp_path)) == ["deit_tiny_224.int8"]


def test_a_page_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block between <!-- summary -->"):
        filled("# Nothing\n", {})


def test_the_committed_page_is_that_of_the_committed_records() -> None:
    text = command.PAGE.read_text(encoding="utf-8")
    assert filled(text, command.stored(command.RECORDS)) == text


def test_quotations_need_their_heading_and_table() -> None:
    text = "## A\n\nwords\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| c |\n## B\n"
    assert rows_of(text, "## A") == [["a", "b"], ["1", "2"]]
    with pytest.raises(ValueError, match="no heading '## C'"):
        rows_of(text, "## C")
    with pytest.raises(ValueError, match="no table under '## B'"):
        rows_of(text, "## B")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Calls of the command whose steps do nothing: the exit code and the steps that were run."""
    ran: list[str] = []
    page = tmp_path / "page.md"
    page.write_text(EMPTY)

    def step(line: list[str], **_: Any) -> Any:
        model, kind = line[line.index("--step") + 1 :]
        ran.append(f"{model}.{kind}")
        failed = (tmp_path / "fail").exists()
        if not failed:
            record = {"status": "done", "passes": work.passes_of(row_of(model), kind), "commit": "0"}
            (tmp_path / f"{model}.{kind}.json").write_text(json.dumps(record))
        return type("Done", (), {"returncode": int(failed), "stdout": "", "stderr": "why it failed\n"})

    monkeypatch.setattr(command.subprocess, "run", step)
    monkeypatch.setattr(command, "filled", lambda text, records: text)
    monkeypatch.setattr(command, "draw", lambda records, path: None)

    def run(*words: str) -> tuple[int, list[str]]:
        ran.clear()
        code = command.main(["--records", str(tmp_path), "--write", str(page), *words])
        return code, list(ran)

    return run


def test_a_run_goes_on_where_it_was_stopped(call: Callable[..., tuple[int, list[str]]], tmp_path: Path) -> None:
    only = ("--only", "deit_tiny_224,swin_tiny_224")
    first = ["deit_tiny_224.shapes", "swin_tiny_224.shapes"]
    assert call(*only, "--kinds", "shapes") == (0, first)
    rest = [f"{model}.{kind}" for model in ("deit_tiny_224", "swin_tiny_224") for kind in FORMATS]
    assert call(*only) == (0, rest)
    assert call(*only) == (0, [])
    changed = tmp_path / "swin_tiny_224.int4.json"
    changed.write_text(json.dumps({**json.loads(changed.read_text()), "passes": "prune24"}))
    assert call(*only) == (0, ["swin_tiny_224.int4"])


def test_a_failed_step_is_kept_and_run_again(call: Callable[..., tuple[int, list[str]]], tmp_path: Path) -> None:
    only = ("--only", "deit_tiny_224", "--kinds", "shapes")
    (tmp_path / "fail").touch()
    assert call(*only) == (1, ["deit_tiny_224.shapes"])
    assert json.loads((tmp_path / "deit_tiny_224.shapes.json").read_text())["reason"] == "why it failed"
    (tmp_path / "fail").unlink()
    assert call(*only) == (0, ["deit_tiny_224.shapes"])


def test_no_step_begins_after_the_end(call: Callable[..., tuple[int, list[str]]]) -> None:
    assert call("--only", CAM, "--until", "00:00") == (3, [])
    assert call("--only", CAM, "--page") == (0, [])


def test_a_wrong_name_is_told(call: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--only", "vgg") == (2, [])
    assert "no model or kind is named 'vgg'; there are deit_tiny_224" in capsys.readouterr().err


def test_figures_are_of_one_model() -> None:
    assert (CAM, "figures") in command.steps_of(ORDER, command.KINDS)
    assert sum(kind == "figures" for _, kind in command.steps_of(ORDER, command.KINDS)) == 1
