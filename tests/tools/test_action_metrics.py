"""The numbers that the GitHub Action shows, from reports of `check`."""

import json
from pathlib import Path

import pytest

from tools.action.metrics import main, metrics, table


def report(agreement: float | None, cosines: list[float | None], **found: float) -> dict:
    outputs = [{"name": "::error::x|y", "cosine_mean": cosine} for cosine in cosines]
    comparison = {"top1_agreement": agreement, "outputs": outputs, "candidate_metrics": found or None}
    return {"comparison": {**comparison, "reference_metrics": {"top1": 0.9} if found else None}}


def test_the_lowest_cosine_counts_and_what_was_not_measured_is_left_out():
    assert metrics(report(None, [0.9, 0.5, None])) == {"cosine": 0.5}
    assert metrics(report(0.75, [None], top1=0.5)) == {"agreement": 0.75, "top1": 0.5}


def test_the_table_has_the_baseline_and_the_change():
    lines = table(report(0.75, [0.9], top1=0.5, new=1), report(0.5, [1.0], top1=0.75)).splitlines()
    assert lines[0] == "| metric | original | compressed | baseline | change |"
    assert "| top1 | 0.9 | 0.5 | 0.75 | -0.25 |" in lines
    assert "| new | - | 1 | - | - |" in lines
    assert table(report(0.75, [0.9]), None).splitlines()[2] == "| agreement | - | 0.75 |"


def test_no_text_of_a_model_gets_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "check.json"
    path.write_text(json.dumps(report(1.0, [1.0])))
    main([str(path)])
    main([str(path), "--json"])
    out = capsys.readouterr().out
    assert "::" not in out
    assert json.loads(out.splitlines()[-1]) == {"agreement": 1.0, "cosine": 1.0}
