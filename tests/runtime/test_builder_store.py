"""What the store gives back, and what it must not trust."""

import json
from pathlib import Path

import pytest

from gpusq_onnx.runtime.store import Store
from gpusq_onnx.scratch import PREFIX

KEY = {"model": "abc", "version": "11.4", "gpu": {"name": "H100"}, "options": {"profiles": [{"x": {"min": (1, 2)}}]}}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(b"engine" * 1000)
    return file


@pytest.fixture
def store(tmp_path: Path, plan: Path) -> Store:
    kept = Store(tmp_path / "cache", "engines")
    kept.keep(KEY, plan, {"seconds": 3})
    return kept


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "engines").iterdir())


def test_an_entry_comes_back_with_its_notes(store: Store, plan: Path, tmp_path: Path) -> None:
    entry = store.find(KEY)
    assert entry is not None
    assert (entry.file.read_bytes(), entry.notes) == (plan.read_bytes(), {"seconds": 3})
    assert [file.suffix for file in files(tmp_path)] == [".bin", ".json"], "nothing temporary is left"


@pytest.mark.parametrize(
    "other",
    [
        {"model": "abd"},
        {"version": "11.3"},
        {"gpu": {"name": "A100"}},
        {"gpu": None},
        {"options": {"profiles": [{"x": {"min": (2, 2)}}]}},
        {"more": 1},
    ],
)
def test_whatever_differs_in_the_key_is_another_entry(store: Store, other: dict[str, object]) -> None:
    assert store.find({**KEY, **other}) is None


def test_a_cut_engine_is_not_there(store: Store, tmp_path: Path) -> None:
    data = files(tmp_path)[0]
    data.write_bytes(data.read_bytes()[:-1])
    assert store.find(KEY) is None


def test_a_changed_engine_is_not_there(store: Store, tmp_path: Path) -> None:
    data = files(tmp_path)[0]
    data.write_bytes(b"x" + data.read_bytes()[1:])
    assert store.find(KEY) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"key": 1, "sha256": "x", "notes": {}}'])
def test_a_broken_card_is_not_there(store: Store, tmp_path: Path, text: str) -> None:
    files(tmp_path)[1].write_text(text)
    assert store.find(KEY) is None


def test_a_stale_entry_under_this_name_is_not_there(store: Store, tmp_path: Path) -> None:
    card = files(tmp_path)[1]
    noted = json.loads(card.read_text())
    noted["key"]["version"] = "10.0"
    card.write_text(json.dumps(noted))
    assert store.find(KEY) is None


def test_changed_notes_are_not_there(store: Store, tmp_path: Path) -> None:
    card = files(tmp_path)[1]
    noted = json.loads(card.read_text())
    card.write_text(json.dumps({**noted, "notes": {"seconds": 2}}))
    assert store.find(KEY) is None


def test_half_an_entry_is_not_there(store: Store, tmp_path: Path) -> None:
    files(tmp_path)[1].unlink()
    assert store.find(KEY) is None


def test_what_a_killed_build_left_goes_when_the_next_one_looks(store: Store, tmp_path: Path) -> None:
    """It may have been killed with its entry in place: the next build takes that, and writes nothing there."""
    left = tmp_path / "cache" / "engines" / f"{PREFIX}left"
    left.mkdir()
    assert store.find(KEY) is not None
    assert not left.exists()


def test_a_broken_entry_is_replaced(store: Store, plan: Path, tmp_path: Path) -> None:
    files(tmp_path)[0].write_bytes(b"")
    store.keep(KEY, plan, {"seconds": 4})
    entry = store.find(KEY)
    assert entry is not None
    assert entry.notes == {"seconds": 4}


def test_a_copy_that_fails_leaves_the_old_entry(store: Store, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        store.keep(KEY, tmp_path / "nowhere", {})
    assert store.find(KEY) is not None
    assert len(files(tmp_path)) == 2


def test_kinds_do_not_meet(store: Store, tmp_path: Path) -> None:
    assert Store(tmp_path / "cache", "timings").find(KEY) is None


@pytest.mark.parametrize("which", [0, 1])
def test_what_everyone_can_write_to_is_not_there(which: int, store: Store, tmp_path: Path) -> None:
    """An engine is executed when it is loaded: a forged entry agrees with itself, so the file's owner is asked, too."""
    files(tmp_path)[which].chmod(0o666)
    assert store.find(KEY) is None
    files(tmp_path)[which].chmod(0o644)
    assert store.find(KEY) is not None
    (tmp_path / "cache" / "engines").chmod(0o777)
    assert store.find(KEY) is None


def test_an_entry_of_another_user_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_onnx.runtime.store.foreign", lambda path: path.suffix == ".bin")
    assert store.find(KEY) is None


@pytest.mark.parametrize("text", ["[" * 99999, "1" * 5000, "[]", "null", '{"key": 1}', "\x00"])
def test_a_card_that_is_none_is_not_there(text: str, store: Store, tmp_path: Path) -> None:
    files(tmp_path)[1].write_text(text)
    assert store.find(KEY) is None
