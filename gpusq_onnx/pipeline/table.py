"""The table of passes and presets: names to where the pass lives, imported only when asked for.

A new pass is one file, one row in `BUILTIN`, one test. Other packages add passes through the entry-point group
`gpusq_onnx.passes`; a name that is defined twice is an error, never a silent choice. The manager and the command line
know this table and no pass.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.pipeline.grammar import Pipeline, Step, did_you_mean, parse
from gpusq_onnx.text import expectation

if TYPE_CHECKING:
    from pydantic import ValidationError

    from gpusq_onnx.pipeline.base import Pass

ENTRY_POINT_GROUP = "gpusq_onnx.passes"

BUILTIN: Mapping[str, str] = MappingProxyType(
    {
        "canonical": "gpusq_onnx.passes.canonical:Canonical",
        "fold": "gpusq_onnx.passes.fold:FoldConstants",
        "patch-matmul": "gpusq_onnx.passes.patch_matmul:PatchMatMul",
        "fp16": "gpusq_onnx.passes.fp16:Fp16",
        "distill": "gpusq_onnx.passes.distill:Distill",
        "permute": "gpusq_onnx.passes.permute:Permute",
        "prune24": "gpusq_onnx.passes.prune:Prune24",
        "prune48pair": "gpusq_onnx.passes.prune:Prune48Pair",
        "prune-nm": "gpusq_onnx.passes.prune:PruneNm",
        "prune": "gpusq_onnx.passes.prune:Prune",
        "qat": "gpusq_onnx.passes.qat:Qat",
        "int4-weights": "gpusq_onnx.passes.int4:Int4Weights",
        "qdq-int4": "gpusq_onnx.passes.qdq_int4:QdqInt4",
        "qdq-int8": "gpusq_onnx.passes.qdq:QdqInt8",
        "qdq-fp8": "gpusq_onnx.passes.qdq_fp8:QdqFp8",
        "qdq-nvfp4": "gpusq_onnx.passes.qdq_nvfp4:QdqNvfp4",
        "qdq": "gpusq_onnx.passes.qdq:Qdq",
    }
)


@dataclass(frozen=True)
class Preset:
    """A pipeline with a name: it is used in `--passes` like a pass and is replaced by its text."""

    text: str
    summary: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "gpusq-oneshot": Preset(
            "prune24{method=sparsegpt},qdq-int8",
            "2:4 by SparseGPT, then INT8 QDQ placed for accuracy: the paper's format without training",
        ),
        "gpusq-distilled": Preset(
            "prune24{method=sparsegpt},distill,qdq-int8{profile=sparse-int8},qat",
            "the whole method: 2:4, distilled, INT8 as sparse kernels need it, scales learned; a thousand images",
        ),
        "gpusq-paper": Preset(
            "patch-matmul,prune24{head=true,method=magnitude,patch=true},"
            "distill{alpha=1,beta=10,blockwise=0,bound=0,features=stages,gamma=5,gate=true,reduce=sum,temperature=3,tokens=1},"
            "qdq-int8{head=true,patch=true},qat{alpha=1,beta=10,features=stages,gate=true,reduce=sum,temperature=3}",
            "the paper's own: patch embedding and head, too; hard and soft labels, the ends of the stages, the gate",
        ),
        "int8-accurate": Preset(
            "qdq-int8{profile=accurate}",
            "INT8 QDQ on the inputs and weights of every Linear; no sparsity",
        ),
        "tensorrt-int8": Preset(
            "prune24,qdq-int8,fp16",
            "2:4, INT8 QDQ, and FP16 for all else: the recommended road to a TensorRT engine",
        ),
        "sparse-int8": Preset(
            "prune24{method=sparsegpt},qdq-int8{profile=sparse-int8}",
            "2:4 by SparseGPT and QDQ on the Linears' outputs too, as TensorRT's sparse INT8 kernels need",
        ),
    }
)


@dataclass(frozen=True)
class PassRow:
    """One pass: its name, `module:Class`, and the distribution it comes from (None: this one)."""

    name: str
    target: str
    distribution: str | None = None

    def load(self) -> "type[Pass[Any]]":
        """Import the pass's class. Raises EnvironmentLacking when a plug-in cannot be imported."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            if self.distribution is None:
                raise
            raise EnvironmentLacking(
                f"the pass {self.name!r} of the plug-in {self.distribution!r} cannot be imported",
                where=self.target,
                found=str(error),
                hint=f"pip install --upgrade {self.distribution}, or uninstall it",
            ) from error


def rows() -> dict[str, PassRow]:
    """All passes by name: our own, then the plug-ins' by alphabet.

    Raises:
        EnvironmentLacking: two distributions define the same name.
    """
    found = {name: PassRow(name, target) for name, target in BUILTIN.items()}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        owner = point.dist.name if point.dist else point.value
        if point.name in found or point.name in PRESETS:
            taken = found[point.name].distribution if point.name in found else None
            raise EnvironmentLacking(
                f"the name {point.name!r} is defined twice",
                where=f"entry points {ENTRY_POINT_GROUP}",
                found=f"{taken or 'gpusq-onnx'} and {owner}",
                hint=f"uninstall {owner}, or ask its authors to rename the pass",
            )
        found[point.name] = PassRow(point.name, point.value, owner)
    return found


def expand(pipeline: Pipeline, known: Mapping[str, PassRow] | None = None) -> Pipeline:
    """Replace presets by their steps and check that every name is a pass.

    Args:
        known: what `rows` gave, which asks every installed distribution; None: it is asked.

    Raises:
        UsageError: an unknown name; gives the nearest valid one. A preset with options.
    """
    known = rows() if known is None else known
    steps: list[Step] = []
    for step in pipeline.steps:
        if step.kind is not None or step.name in known:
            steps.append(step)
        elif step.name in PRESETS:
            if step.options:
                raise UsageError(
                    f"the preset {step.name!r} takes no options",
                    where=str(step),
                    hint=f"it is short for {PRESETS[step.name].text!r}: write that, or --set PASS.KEY=VALUE",
                )
            steps += parse(PRESETS[step.name].text).steps
        else:
            valid = [*known, *PRESETS]
            raise UsageError(
                f"there is no pass named {step.name!r}",
                expected=f"one of {', '.join(valid)}",
                hint=did_you_mean(step.name, valid) or "see gpusq-onnx passes list",
            )
    return Pipeline(tuple(steps))


def resolve(pipeline: Pipeline) -> "list[Pass[Any]]":
    """The passes of a pipeline (presets expanded), each made with its options.

    Raises:
        UsageError: an unknown pass, an unknown option or a value out of range; lists what is valid.
    """
    known = rows()
    return [one(step, known) for step in expand(pipeline, known).steps]


def one(step: Step | str, known: Mapping[str, PassRow] | None = None) -> "Pass[Any]":
    """The pass of one step, or of its text; `known` and errors as for `expand` and `resolve`."""
    known = rows() if known is None else known
    (found,) = expand(parse(step) if isinstance(step, str) else Pipeline((step,)), known).steps
    return _instantiate(load(found, known), found)


def load(step: Step, table: Mapping[str, PassRow]) -> "type[Pass[Any]]":
    """The class of a step's pass: the caller's own, else the one that `table` (see `rows`) has.

    Raises:
        UsageError: the caller's own has the name of another pass, or of a preset.
    """
    known = table.get(step.name)
    if step.kind is None and known is not None:
        return known.load()
    if step.kind is None or step.name in PRESETS or (known is not None and known.load() is not step.kind):
        raise UsageError(f"the name {step.name!r} is that of another pass", hint="give your pass a name of its own")
    return step.kind


def _instantiate(pass_type: "type[Pass[Any]]", step: Step) -> "Pass[Any]":
    from pydantic import ValidationError  # late: `--help` needs the names only

    try:
        return pass_type(pass_type.Options.model_validate(dict(step.options)))
    except ValidationError as error:
        raise _option_error(error, step, pass_type.Options.model_fields) from None


def _option_error(error: "ValidationError", step: Step, fields: Mapping[str, Any]) -> UsageError:
    """The first of pydantic's findings, as a usage error in this tool's words."""
    first: Mapping[str, Any] = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return UsageError(
            f"the pass {step.name!r} has no option {key!r}",
            where=str(step),
            expected=f"one of {', '.join(sorted(fields))}",
            hint=did_you_mean(key, fields) or f"see gpusq-onnx passes show {step.name}",
        )
    return UsageError(
        f"the pass {step.name!r} does not take this value of {key!r}"
        if key
        else f"the options of {step.name!r} do not fit together",
        where=str(step),
        expected=expectation(first["msg"]),
        found=repr(first["input"]) if key else None,
        hint=_nearest_choice(first, key) or f"see gpusq-onnx passes show {step.name}",
    )


def _nearest_choice(finding: Mapping[str, Any], key: str) -> str | None:
    """`did you mean` among the choices of a Literal or an Enum."""
    import re

    choices: Sequence[str] = re.findall(r"'([^']+)'", str(finding.get("ctx", {}).get("expected", "")))
    return did_you_mean(str(finding["input"]), choices) if key and choices else None
