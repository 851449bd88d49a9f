"""The command line as a whole: exit codes, messages, `--help` in time, one stream for results and one for the rest."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import HEARS_SIGNALS, IMAGES, ROOT, call, fresh_model

from gpusq_onnx import cli as cli_package
from gpusq_onnx.cli import app, verbs
from gpusq_onnx.errors import EnvironmentLacking


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


def test_help_names_every_verb_and_exit_code() -> None:
    outcome = call("--help")
    assert outcome.code == 0
    assert all(verb in outcome.out for verb in verbs.VERBS)
    assert all(str(code) in outcome.out for code in (0, 1, 2, 3, 4, 5, 130))


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_help_of_a_verb(verb: str) -> None:
    outcome = call(verb, "--help")
    assert outcome.code == 0
    assert f"Usage: gpusq-onnx {verb}" in outcome.out


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, contextlib, io\n"
        "from gpusq_onnx.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['apply', '--help'])\n"
        "print(*sorted({'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'polygraphy', 'rich', 'torch',"
        " 'tensorrt', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_list_of_verbs_imports_none_and_fits_a_terminal() -> None:
    script = (
        "import sys\n"
        "from gpusq_onnx.cli import main, verbs\n"
        "main(['--help'])\n"
        "wanted = {f'gpusq_onnx.cli.{verb.where.split(chr(46))[0]}' for verb in verbs.VERBS.values()}\n"
        "print('imported:', *sorted(wanted & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    commands, _, imported = done.stdout.partition("Commands:\n")[2].partition("imported:")
    assert imported.strip() == ""
    assert [line.split()[0] for line in commands.splitlines()] == list(verbs.VERBS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "usage error: no such command 'nonsense'"),
        (["plann"], "did you mean 'plan'"),
        (["plan", "--frob", "no.onnx"], "usage error: no such option: --frob\n  where: gpusq-onnx plan\n  next: see"),
        (["plan", "no.onnx", "-p"], "usage error: option '-p' requires an argument"),
        (["check", "a", "b", "--min-top1", "95"], "usage error: invalid value for '--min-top1': must be less than"),
        (["plan", "no.onnx", "--passes", "prune24", "--mean", "123.7"], "divide a mean of 0 to 255"),
        (["plan", "no.onnx", "--passes", "prune24", "--fit", "squash"], "fit must be 'crop' or 'stretch'"),
        (["inspect"], "missing argument"),
        (["inspect", "no.onnx"], "no such model file"),
        (["unpack", "no.gpusq", "other.gpusq"], "unexpected argument 'other.gpusq'"),
        (["apply", "no.onnx"], "one of --passes and --recipe"),
        (["apply", "no.onnx", "--passes", "prune42"], "did you mean 'prune24'"),
        (["apply", "no.onnx", "--passes", "prune24{methd=magnitude}"], "did you mean 'method'"),
        (["apply", "no.onnx", "--passes", "prune24{damping=7}"], "less than or equal to 1"),
        (["apply", "no.onnx", "--passes", "prune24{"], "quote the text"),
        (["apply", "--passes", "prune24method=magnitude", "prune24damping=0.1", "no.onnx"], "quote the text"),
        (["apply", "--passes=prune24method=magnitude", "--passes=prune24damping=0.1", "no.onnx"], "quote the text"),
        (["apply", "no.onnx", "--passes", "prune24", "--recipe", "r.toml"], "both"),
        (["apply", "no.onnx", "--passes", "prune24", "--set", "qdq-int8.profile=x"], "not in the pipeline"),
        (["apply", "no.onnx", "--passes", "fold", "--finetune", "10"], "nothing to fine-tune"),
        (["plan", "no.onnx", "--passes", "prune24", "--finetune", "2", "--finetune-steps", "9"], "how long to train"),
        (["apply", "no.onnx", "--recipe", "r.toml"], "'r.toml' does not exist"),
        (["check", "a.onnx", "b.onnx", "--min-cosine", "95"], "min-cosine"),
        (["check", "a.onnx", "b.onnx", "--build"], "--parser"),
        (["check", "a.onnx", "b.onnx", "--mean", "x"], "mean"),
        (["passes", "show", "prune42"], "did you mean 'prune24'"),
    ],
)
def test_usage_errors_exit_2(words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_onnx_exits_3(tmp_path: Path) -> None:
    file = tmp_path / "notes.onnx"
    file.write_text("these are notes")
    outcome = call("inspect", file)
    assert outcome.code == 3
    assert outcome.err.startswith("unsupported model: ")
    assert "  where: " in outcome.err


def test_a_bug_exits_4_and_asks_for_debug(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr("gpusq_onnx.workflows.inspect.inspect_model", lambda *_, **__: 1 / 0)
    outcome = call("inspect", model)
    assert outcome.code == 4
    assert "ZeroDivisionError" in outcome.err
    assert "--debug" in outcome.err
    assert "Traceback" not in outcome.err
    assert "Traceback" in call("--debug", "inspect", model).err


def test_a_lacking_environment_exits_5(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise EnvironmentLacking("no TensorRT parser is usable here", hint="install it")

    monkeypatch.setattr("gpusq_onnx.workflows.check.parser_verdict", lacking)
    outcome = call("check", model, model, "--data", IMAGES, "--samples", "4", "--parser")
    assert outcome.code == 5
    assert "next: install it" in outcome.err


def test_an_interrupt_in_a_verb_exits_130(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpusq_onnx.workflows.inspect.inspect_model", interrupted)
    outcome = call("inspect", model)
    assert outcome.code == app.INTERRUPTED == 130
    assert "no file was left half-written" in outcome.err


def test_a_signal_exits_130() -> None:
    script = (
        f"{HEARS_SIGNALS}\n"
        "import sys, time, gpusq_onnx.graph.io as io\n"
        "from gpusq_onnx.cli import main\n"
        "def slow(path):\n    print('ready', flush=True); time.sleep(30)\n"
        "io.load = slow\n"
        "sys.exit(main(['inspect', 'model.onnx']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "interrupted" in err


def test_version() -> None:
    assert call("--version").out == f"gpusq-onnx {app.__version__}\n"


def test_passes_list_and_show() -> None:
    listed = json.loads(call("passes", "list", "--json", "-").out)
    assert {"prune24", "qdq-int8"} <= {row["name"] for row in listed["passes"]}
    for name in [row["name"] for row in listed["passes"] + listed["presets"]]:
        assert name in call("passes", "list").out
        assert call("passes", "show", name).out.startswith(name)
    options = json.loads(call("passes", "show", "prune24", "--json", "-").out)["options"]
    method = next(option for option in options if option["option"] == "method")
    assert method["takes"] == "auto | magnitude | sparsegpt"
    assert "with any number of threads" in call("passes", "show", "prune24").out
    assert "with as many threads" in call("passes", "show", "distill").out


def test_public_names() -> None:
    assert cli_package.__all__ == ["main"]
