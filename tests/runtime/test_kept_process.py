"""The fixture that keeps processes: who gets one again, and who does not."""

import os
from pathlib import Path

import pytest

from tests.kept_process import Keeper

MODULE = "waits_for_the_end"


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    (tmp_path / f"{MODULE}.py").write_text("import sys\n\ndef main():\n    sys.stdin.read()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return Keeper()


def lent(keeper: Keeper) -> int:
    """The process that is lent, and given back."""
    worker = keeper.lend(MODULE)
    worker.__exit__(None, None, None)
    return worker._worker._process.pid


def test_an_equal_wish_gets_the_same_process(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lent(keeper)
    assert lent(keeper) == first
    with monkeypatch.context() as patch:
        patch.setenv("OTHER", "1")
        assert lent(keeper) != first
    assert lent(keeper) == first
    busy = keeper.lend(MODULE)
    assert lent(keeper) != busy._worker._process.pid
    busy._sound = False  # as after a request that was cut short
    busy.__exit__(None, None, None)
    assert busy._worker._process.poll() is not None
    keeper.end()


def test_a_fork_neither_uses_nor_ends_what_its_parent_keeps(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {lent(keeper)}
    monkeypatch.setenv("OTHER", "1")
    mine.add(lent(keeper))
    child = os.fork()
    if not child:
        code = 1
        try:
            own = [lent(keeper)]
            monkeypatch.delenv("OTHER")
            own.append(lent(keeper))
            code = 2 if mine & set(own) else 0
            keeper.end()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lent(keeper) in mine
    monkeypatch.delenv("OTHER")
    assert lent(keeper) in mine
    keeper.end()
