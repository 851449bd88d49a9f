"""What the environment of `torchrun` says of the processes that it started."""

import pytest

from gpusq_onnx.runtime.crew import ALONE, Crew, launched, launched_here, leads


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1"}, (0, 1)),
        ({"WORLD_SIZE": "4"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "some", "WORLD_SIZE": "two"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, (0, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
    ],
)
def test_who_leads_follows_from_one_reading(
    given: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (launched(), leads()) == (expected, expected[0] == 0)
    if expected == (0, 1):
        assert Crew.joined() == ALONE


@pytest.mark.parametrize(("given", "expected"), [("", 1), ("0", 1), ("3", 3), ("many", 1)])
def test_processes_of_this_host(given: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", given)
    assert launched_here() == expected
