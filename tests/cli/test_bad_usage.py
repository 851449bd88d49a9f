"""Exit 2: what the caller mistyped is reported before any work, with the next step, and nothing is written."""

import os
import subprocess
import sys
from pathlib import Path

import bad_models
import pytest
from command_line import IMAGES, ROOT, call, fresh_model
from desk import unchanged


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


MISTYPED = {
    "missing model file": (["apply", "{dir}/modle.onnx", "-p", "prune24"], ["modle.onnx", "check the path"]),
    "a folder as the model": (["apply", "{dir}", "-p", "prune24"], ["is a folder", "name the .onnx file"]),
    "missing data folder": (["apply", "{model}", "-p", "qdq-int8", "--data", "{dir}/imgs"], ["imgs", "check the path"]),
    "data of no known kind": (["apply", "{model}", "-p", "qdq-int8", "--data", "{model}"], ["--data", ".npz"]),
    "unknown pass": (["apply", "{model}", "-p", "prune42"], ["'prune42'", "did you mean 'prune24'"]),
    "unknown option": (["apply", "{model}", "--pases", "prune24"], ["--pases", "--passes"]),
    "unknown key": (["apply", "{model}", "-p", "prune24{metod=magnitude}"], ["'metod'", "did you mean 'method'"]),
    "unknown --set key": (
        ["apply", "{model}", "-p", "qdq-int8", "--set", "qdq-int8.profle=accurate"],
        ["'profle'", "did you mean 'profile'"],
    ),
    "--set of a pass that is not there": (
        ["apply", "{model}", "-p", "qdq-int8", "--set", "prune24.method=magnitude"],
        ["'prune24'", "not in the pipeline", "qdq-int8"],
    ),
    "value out of range": (["apply", "{model}", "-p", "prune24{damping=7}"], ["'damping'", "less than or equal to 1"]),
    "value that is no choice": (
        ["apply", "{model}", "-p", "qdq-int8{profile=acurate}"],
        ["'profile'", "did you mean 'accurate'"],
    ),
    "unknown pattern": (["apply", "{model}", "-p", "prune24{pattern=5:4}"], ["'pattern'", "5:4"]),
    "samples out of range": (["apply", "{model}", "-p", "qdq-int8", "--samples", "0"], ["samples", "greater than"]),
    "a file for two models": (
        ["apply", "{model}", "{dir}/../b.onnx", "-p", "prune24", "-o", "{dir}/c.onnx"],
        ["one file", "DIR/"],
    ),
    "a folder as the page": (["report", "{model}", "-o", "{dir}"], ["folder", "name a file"]),
    "a file for a folder of the output": (
        ["apply", "{model}", "-p", "prune24", "-o", "{model}/b.onnx"],
        ["no folder can"],
    ),
    "a device as the output": (["apply", "{model}", "-p", "prune24", "-o", "/dev/null"], ["/dev/null", "name a file"]),
    "the report over the model": (["apply", "{model}", "-p", "prune24", "--report", "{model}"], ["--report", "model"]),
    "the report over its digest": (
        ["apply", "{model}", "-p", "prune24", "--report", "{dir}/report.md"],
        ["digest", "FILE.json"],
    ),
    "a backend that there is not": (
        ["bench", "{model}", "--backend", "onnx"],
        ["'onnx'", "did you mean 'onnxruntime'"],
    ),
    "means that are no numbers": (["plan", "{model}", "-p", "prune24", "--mean", "a,b,c"], ["--mean", "0.485,0.456"]),
    "a name that is near to none": (["passes", "show", "nope"], ["'nope'", "passes list"]),
    "pictures of no kind": (["cam", "{model}", "--data", "{dir}", "-o", "{dir}/maps.jpg"], ["'.jpg'", "maps.jpg/"]),
    "missing recipe": (["apply", "{model}", "--recipe", "{dir}/r.toml"], ["r.toml", "check --recipe"]),
}


@pytest.mark.parametrize("case", MISTYPED)
def test_a_mistyped_command(case: str, model: Path, tmp_path: Path) -> None:
    words, says = MISTYPED[case]
    places = {"model": str(model), "dir": str(model.parent)}

    def filled(text: str) -> str:
        for name, place in places.items():
            text = text.replace(f"{{{name}}}", place)
        return text

    with unchanged(tmp_path):
        outcome = call(*map(filled, words))
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    for text in map(filled, says):
        assert text in outcome.err


UNQUOTED = [
    "apply --passes prune24{method=magnitude,damping=0.1} model.onnx",
    "apply --passes prune24{method=magnitude,damping=0.1},qdq-int8 model.onnx",
    "apply --passes prune24,qdq-int8{profile=accurate,attention=false} model.onnx",
    "apply model.onnx --passes prune24{method=magnitude,damping=0.1}",
    "apply model.onnx --passes=prune24{method=magnitude,damping=0.1}",
    "apply --passes prune24{method=magnitude damping=0.1} model.onnx",
    "apply model.onnx --passes prune24{method=magnitude, damping=0.1}",
    "apply model.onnx -p prune24{only=[fc1;fc2]}",
    "plan model.onnx -p qdq-int8{profile=accurate,attention=false}",
]


@pytest.mark.parametrize("command", UNQUOTED)
def test_braces_that_a_real_bash_took_apart(command: str, model: Path, tmp_path: Path) -> None:
    """bash itself makes the arguments: of {a=1,b=2} two words, of {a=1 b=2} two, and of [a;b] two commands."""
    start = tmp_path / "gpusq-onnx"
    start.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpusq_onnx "$@"\n')
    start.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with unchanged(tmp_path):
        done = subprocess.run(
            ["bash", "-c", f"set -e; gpusq-onnx {command}"],
            cwd=model.parent, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "quote the text, --passes 'prune24{method=sparsegpt},qdq-int8'" in done.stderr
    assert "--set prune24.method=sparsegpt" in done.stderr


def test_quoted_braces_are_no_error_in_bash(model: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m gpusq_onnx plan --passes 'prune24{{method=magnitude,damping=0.1}}' model.onnx"
    done = subprocess.run(["bash", "-c", command], cwd=model.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["plain", "dots", "link to it", "hard link", "link to its folder"])
def test_the_output_is_the_input(form: str, model: Path, tmp_path: Path) -> None:
    folder = model.parent
    other = folder / "other.onnx"
    if form == "link to it":
        other.symlink_to(model)
    elif form == "hard link":
        other.hardlink_to(model)
    elif form == "link to its folder":
        (tmp_path / "alias").symlink_to(folder)
    outputs = {
        "plain": model,
        "dots": folder / ".." / folder.name / model.name,
        "link to its folder": tmp_path / "alias" / model.name,
    }
    with unchanged(tmp_path):
        outcome = call("apply", model, "-p", "prune24", "-o", outputs.get(form, other))
    assert (outcome.code, outcome.out) == (2, "")
    assert "would overwrite the input" in outcome.err
    assert "give another -o/--output" in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        ["pack", "-o"],
        ["build", "-o"],
        ["tune", "--at-most", "40%", "--data", IMAGES, "-o"],
        ["plan", "-p", "prune24", "--report"],
        ["inspect", "--json"],
    ],
    ids=lambda words: words[0],
)
def test_no_result_takes_the_place_of_a_hard_link_to_the_model(words: list[str], model: Path, tmp_path: Path) -> None:
    other = model.with_name("other.json")
    other.hardlink_to(model)
    with unchanged(tmp_path):
        outcome = call(words[0], model, *words[1:], other)
    assert (outcome.code, outcome.out) == (2, "") and "would overwrite the model" in outcome.err


@pytest.mark.parametrize("output", ["weights.bin", "new.onnx", "data.onnx"])
def test_the_output_or_its_data_file_is_the_input_s_data_file(output: str, tmp_path: Path) -> None:
    """`-o` on the data file itself; `-o new.onnx` where the input's data is a link from new.onnx.data; and by name."""
    import onnx

    folder = tmp_path / "work"
    folder.mkdir()
    proto = onnx.load(bad_models.MODEL)
    location = {"weights.bin": "weights.bin", "new.onnx": "weights.bin", "data.onnx": "data.onnx.data"}[output]
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location=location, size_threshold=1024)
    if output == "new.onnx":
        (folder / "new.onnx.data").symlink_to("weights.bin")
    with unchanged(tmp_path):
        outcome = call("apply", folder / "model.onnx", "-p", "prune24", "-o", folder / output)
    assert (outcome.code, outcome.out) == (2, "")
    assert "would overwrite the input" in outcome.err


def test_data_options_that_are_wrong(model: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        for words, says in (
            (["--mean", "x,y,z"], "mean"),
            (["--std", "0,1,1"], "std must be above 0"),
            (["--resize", "16", "--crop", "32"], "must not be smaller than crop"),
            (["--layout", "CHWN"], "layout"),
            (["--data-options", str(tmp_path / "no.toml")], "no.toml"),
            (["--data-options", str(model)], "is not TOML"),
        ):
            outcome = call("apply", model, "-p", "qdq-int8", "--data", IMAGES, *words)
            assert (outcome.code, outcome.out) == (2, ""), outcome.err
            assert says in outcome.err
