"""Options that go with others, and paths that are `-`: refused with exit code 2, and never ignored."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import MODEL, call

from gpusq_onnx.cli.belongs import BARS, NEEDS
from gpusq_onnx.cli.verbs import VERBS

COMMANDS: dict[str, tuple[str, ...]] = {
    "apply": ("-p", "prune24"), "plan": ("-p", "prune24"), "check": (str(MODEL),),
    "tune": ("--data", "images.npz", "--budget", "kl<=1"), "cam": ("--data", "images.npz"), "passes": ("list",),
}  # fmt: skip
"""What each verb needs beside a model, so that nothing but the option is wrong."""


def options(verb: str) -> dict[str, Any]:
    """The options of a verb by their long names."""
    return {p.opts[0]: p for p in VERBS[verb].command(verb).params if p.param_type_name == "option"}


def value(verb: str, option: str) -> list[str]:
    """The option with a value that it takes."""
    found = options(verb)[option]
    text = {"--fit": "crop", "--crop-ratio": "0.9", "--tap-tolerance": "0.1", "--set": "a.b=1"}.get(option, "2")
    return [option] if found.is_flag else [option, text]


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Work in an empty folder, in which nothing may be left."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
    assert not list(path.iterdir())


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, rows in NEEDS.items() for option in rows])
def test_an_option_without_its_company_is_refused(verb: str, option: str, tmp_path: Path) -> None:
    with folder(tmp_path):
        done = call(verb, *COMMANDS.get(verb, ()), *value(verb, option), MODEL)
    assert done.code == 2 and f"{option} goes with {NEEDS[verb][option][0]}" in done.err


@pytest.mark.parametrize(
    ("verb", "option", "other"),
    [(verb, option, o) for verb, rows in BARS.items() for option in rows for o in rows[option]],
)
def test_an_option_beside_what_leaves_it_nothing_to_do_is_refused(
    verb: str, option: str, other: str, tmp_path: Path
) -> None:
    words = COMMANDS["tune"] if verb == "tune" else ("--data", "images.npz")
    with folder(tmp_path):
        done = call(verb, *words, *value(verb, option), *value(verb, other), MODEL)
    assert done.code == 2 and f"{option} takes no {other}" in done.err


PATHS = [
    ("plan", option) for option in ("--report", "--recipe", "--data", "--classes", "--data-options", "--log-file")
] + [
    ("tune", "--output"), ("cam", "--output"), ("build", "--output"), ("build", "--log"), ("build", "--cache"),
    ("bench", "--chart"), ("report", "--output"), ("report", "--model"), ("check", "--artefacts"),
    ("check", "--annotations"), ("check", "--masks"), ("pack", "--output"), ("unpack", "--output"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "option"), PATHS)
def test_a_dash_is_no_file(verb: str, option: str, tmp_path: Path) -> None:
    with folder(tmp_path):
        done = call(verb, *COMMANDS.get(verb, ()), option, "-", MODEL)
    assert (done.code, done.out) == (2, "") and " -\n" in done.err


@pytest.mark.parametrize("verb", ["inspect", "plan", "pack", "check"])
def test_a_dash_is_no_model(verb: str, tmp_path: Path) -> None:
    with folder(tmp_path):
        done = call(verb, *COMMANDS.get(verb, ()), "-")
    assert (done.code, done.out) == (2, "") and "'-' is no file here" in done.err


def test_one_document_goes_to_stdout(tmp_path: Path) -> None:
    with folder(tmp_path):
        done = call("plan", *COMMANDS["plan"], "--json", "-", "--report", "-", MODEL)
        before = call("--log-file", "-", "inspect", MODEL)
    assert (done.code, done.out) == (2, "") and "--report -" in done.err
    assert before.code == 2 and "--log-file -" in before.err
