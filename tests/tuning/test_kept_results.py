"""Measurements kept between runs, and a folder that cannot be used: the work goes on, and the report says why."""

import errno
import os
from pathlib import Path

import pytest

import gpusq_onnx
from gpusq_onnx.runtime.store import Store
from gpusq_onnx.tuning.kept import Kept

ASSETS = Path(__file__).parents[1] / "assets"


def test_what_was_kept_is_found_under_its_key_and_no_other(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "cache", "tune", {"model": "a"})
    kept.keep([1, 2], pipeline="p")
    assert Kept(tmp_path / "cache", "tune", {"model": "a"}).find(pipeline="p") == [1, 2]
    assert Kept(tmp_path / "cache", "tune", {"model": "b"}).find(pipeline="p") is None
    assert kept.problem == ""


def test_without_a_folder_nothing_is_kept_and_nothing_said() -> None:
    kept = Kept(None, "tune", {})
    kept.keep(1)
    assert kept.find() is None and kept.problem == ""


def test_a_folder_without_permission_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    kept = Kept(tmp_path / "home" / "cache", "tune", {})
    kept.keep(1)
    assert kept.find() is None
    assert str(tmp_path / "home" / "cache") in kept.problem and "there is no permission" in kept.problem
    assert list(tmp_path.iterdir()) == []


def test_results_that_are_there_are_found_in_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kept(tmp_path, "tune", {}).keep(7)
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert Kept(tmp_path, "tune", {}).find() == 7


def test_a_full_disk_is_a_problem_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Store, "keep", full)
    kept = Kept(tmp_path, "tune", {})
    kept.keep(1)
    assert kept.problem.endswith(os.strerror(errno.ENOSPC))


@pytest.mark.long
def test_sensitivities_are_measured_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """A file has the name of the cache's folder."""
    (tmp_path / "cache").write_text("")
    found = gpusq_onnx.sensitivity(
        ASSETS / "digits_vit.onnx",
        data=ASSETS / "digits_train.npz",
        data_options={"samples": 8},
        images=4,
        exact=0,
        forms=["int8"],
        cache=tmp_path / "cache" / "gpusq-onnx",
    )
    assert found.found.losses
    assert [text for text in found.warnings if str(tmp_path / "cache") in text and "not kept" in text]
