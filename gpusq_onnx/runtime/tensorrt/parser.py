"""Would TensorRT take this model? Asked of a real parser, in a process of its own.

TensorRT is used where it is installed and starts (it needs a GPU), else the harness in `trt_cpu`: TensorRT-RTX's
parser and builder, on the CPU. Which of the two spoke is part of the verdict. The parser proves operators, QDQ rules
and types; a build proves besides that an engine can be planned, with sparse weights looked for. Neither runs the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.runtime.child import ask
from gpusq_onnx.runtime.tensorrt.parser_worker import ParseRequest
from gpusq_onnx.scratch import Scratch


@dataclass(frozen=True)
class Verdict:
    """What the parser, and with `build` the builder, said.

    Attributes:
        ok: the model was parsed, and built if that was asked for.
        errors: the parser's own errors, each with node, operator and message; empty when ok.
        library: who said so, "TensorRT 11.4" or "TensorRT-RTX 1.7 (CPU)".
        built: an engine was built.
        seconds: wall time, start of the process included.
    """

    ok: bool
    errors: list[str]
    library: str
    built: bool
    seconds: float


def parser_verdict(
    path: Path | str,
    *,
    harness: Path | None = None,
    build: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    timeout: float = 600.0,
) -> Verdict:
    """Have a TensorRT parser read the model at `path`, and on request a builder plan an engine from it.

    A parser that crashes or outlasts `timeout` refused the model: that is a verdict, not an error here.

    Args:
        path: an ONNX file; external data is found beside it.
        harness: cache folder for the parser that needs no GPU; set up there on first use (150 MB). None: TensorRT only.
        build: build an engine too, for one profile: `shapes`, else batch 1.
        shapes: fixed shapes by input name for the build; needed for inputs with dynamic dimensions besides the batch.
        timeout: seconds, for parsing and building together.

    Raises:
        UsageError: no such file; shapes that do not fit the inputs.
        EnvironmentLacking: no TensorRT that starts here, and no harness or no means to set it up.
    """
    model = Path(path)
    if not model.is_file():
        raise UsageError("the model file does not exist", where=str(model))
    request: ParseRequest = {
        "model": str(model.resolve()),
        "site": None,
        "build": build,
        "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
        "answer": "",
    }
    reason = "not installed"
    if find_spec("tensorrt") is not None:
        verdict, reason = _ask(request, timeout)
        if verdict is not None:
            return verdict
    if harness is None:
        raise EnvironmentLacking(
            "no TensorRT parser is usable here",
            expected="TensorRT and an NVIDIA GPU, or a folder for the parser that needs no GPU",
            found=f"tensorrt: {reason}",
            hint="run `python -m gpusq_onnx.runtime.trt_cpu FOLDER` once",
        )
    from gpusq_onnx.runtime.trt_cpu import prepare

    verdict, reason = _ask({**request, "site": str(prepare(harness))}, timeout)
    if verdict is None:
        raise EnvironmentLacking(
            "the TensorRT parser for machines with no GPU does not start",
            where=str(harness),
            found=reason,
            hint="remove the folder and try again",
        )
    return verdict


def _ask(request: ParseRequest, timeout: float) -> tuple[Verdict | None, str]:
    """A verdict; or None and the reason why this TensorRT cannot give one."""
    with Scratch() as scratch:
        reply = ask("gpusq_onnx.runtime.tensorrt.parser_worker", request, scratch, timeout)
        said = reply.said()
    answer = reply.answer
    if "shapes" in answer:
        raise UsageError(
            "the shapes for the build do not fit the model", where=request["model"], found=answer["shapes"]
        )
    if "library" not in answer:
        return None, answer.get("unusable", " | ".join([f"it {reply.end}", *said[-5:]]))
    if "errors" not in answer:
        errors = [f"the parser {reply.end}", *said[-5:]]
    elif any(error.startswith("builder:") for error in answer["errors"]):  # whose reasons are in its log only
        errors = answer["errors"] + [line for line in said if line.startswith("[E]")]
    else:
        errors = answer["errors"]
    return Verdict(not errors, errors, answer["library"], answer.get("built", False), reply.seconds), ""
