"""Where a compressed model is to run: what each target reads and runs, as one table, and pipelines made to fit it.

A form is "weights x data" by the names of `quant.formats` ("int4 in blocks x float"), or what a pass says it writes
("MatMulNBits", "fp16"). `fit` looks at what each pass of a pipeline writes:

    a form that the target runs              nothing, or the condition that the table names
    a form with an honest other spelling     that is written instead (`_SPELLINGS`), with one sentence why
    any other form                           refused, with what to write instead
    a pattern without sparse kernels there   written, with one sentence: it packs, and runs dense

Source: docs/formats.md, which says of each fact how it is known. No GPU has run any of this for us.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.graph.opset import NEWEST
from gpusq_onnx.graph.qdq.weight_only import NBITS
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import Written
from gpusq_onnx.pipeline.grammar import Pipeline, Step, did_you_mean
from gpusq_onnx.quant.formats import INT4
from gpusq_onnx.quant.schemes import SCHEMES, form_name
from gpusq_onnx.sparsity.patterns import TWO_FOUR, parse_pattern

FP16 = "fp16"
_INT8 = (SCHEMES["int8"].form, SCHEMES["w4a8"].form, SCHEMES["w4a4"].form)
_INT4 = form_name(INT4.name, "float", blocks=True)
_NATIVE = tuple(form_name(INT4.name, data, blocks=blocks) for data in ("int8", INT4.name) for blocks in (False, True))
_FP8 = ("fp8 x fp8", "fp8 x float")
_FP4 = ("fp4 in blocks x fp4", "fp4 in blocks x float")

Forms = Mapping[str, str]


def _forms(*plain: str, **conditions: str) -> Forms:
    return MappingProxyType({**dict.fromkeys(plain, ""), **conditions})


@dataclass(frozen=True)
class Target:
    """One row.

    Attributes:
        name, gpus: as it is asked for, and what it is.
        runtime: what reads the file there.
        forms: what it runs, each with the condition for it ("" where there is none).
        opset: the newest opset that is written for it.
        sparse: patterns with sparse kernels there.
        placement: where Q/DQ pairs must be for these.
        known: what runs sparse, and where that is known from.
        untested: what nobody here has seen.
    """

    name: str
    gpus: str
    runtime: str
    forms: Forms
    opset: int
    sparse: tuple[str, ...]
    placement: str
    known: str
    untested: str

    def cells(self) -> list[str]:
        """The row as text, under `COLUMNS`."""
        forms = [f"{form} ({condition})" if condition else form for form, condition in self.forms.items()]
        sparse = ", ".join(self.sparse) or "none"
        reads = f"{self.runtime}, opset up to {self.opset}"
        return [self.name, self.gpus, reads, "; ".join(forms), sparse, self.placement, self.known, self.untested]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "forms": dict(self.forms), "sparse": list(self.sparse)}


COLUMNS = ("target", "GPUs", "runtime", "weights x data", "sparse kernels", "Q/DQ for them",
           "known to run sparse", "untested")  # fmt: skip

_SPARSE_INT8 = "Q/DQ on the outputs of sparse Linears, too: qdq-int8{profile=sparse-int8}"
_KNOWN = "2:4 in FP16 and INT8 (NVIDIA's documentation)"
_SPEED = "speed, and which kernels TensorRT chooses: build reports it on the GPU"
_TENSORRT = "TensorRT 10, 11"

_ROWS = (
    Target("ampere", "A100, A10, A40: SM 8.0, 8.6", _TENSORRT, _forms(*_INT8, _INT4, FP16), NEWEST, (TWO_FOUR.name,),
           _SPARSE_INT8, _KNOWN, f"{_SPEED}; its INT4 tensor cores: no library reaches them"),
    Target("ada", "L4, L40: SM 8.9", _TENSORRT, _forms(*_INT8, _INT4, *_FP8, FP16), NEWEST, (TWO_FOUR.name,),
           _SPARSE_INT8, f"{_KNOWN}; INT8 layers chosen sparse with TensorRT 10.14 (TensorRT issue 4694)",
           f"{_SPEED}; 2:4 in FP8; its INT4 tensor cores: no library reaches them"),
    Target("hopper", "H100, H200: SM 9.0", _TENSORRT, _forms(*_INT8, _INT4, *_FP8, FP16), NEWEST, (TWO_FOUR.name,),
           _SPARSE_INT8, _KNOWN, f"{_SPEED}; 2:4 in FP8; it has no 4-bit tensor cores"),
    Target("blackwell", "B200, GB200: SM 10", _TENSORRT, _forms(*_INT8, _INT4, *_FP8, *_FP4, FP16), 25,
           (TWO_FOUR.name,), _SPARSE_INT8, _KNOWN, f"{_SPEED}; 2:4 in FP8; 4:8 in pairs in FP4: no library ships it"),
    Target("orin", "Jetson Orin: SM 8.7", "TensorRT 10", _forms(*_INT8, _INT4, FP16), 21, (TWO_FOUR.name,),
           _SPARSE_INT8, _KNOWN, f"{_SPEED}; INT4 weights and opsets above 20 in JetPack's TensorRT; its DLA"),
    Target("rtx", "GeForce RTX 30, 40, 50: SM 8.6, 8.9, 12.0", "TensorRT-RTX",
           _forms(*_INT8, _INT4, FP16, **dict.fromkeys(_FP8, "from RTX 40 on (SM 8.9)"),
                  **dict.fromkeys(_FP4, "on RTX 50 (SM 12.0)")),
           NEWEST, (TWO_FOUR.name,), _SPARSE_INT8, _KNOWN,
           f"{_SPEED}; whether TensorRT-RTX has sparse kernels; its parser and builder take these forms (run)"),
    Target("cpu", "x64, Arm", "onnxruntime",
           _forms(*_INT8, *_NATIVE, NBITS, _INT4, *_FP8,
                  **{FP16: "its CPU kernels compute FP16 in FP32: a smaller file, and no faster"}),
           NEWEST, (), "as it comes", "nothing: 2:4 is computed dense", "speed with FP8; Arm"),
)  # fmt: skip
TARGETS: Mapping[str, Target] = MappingProxyType({row.name: row for row in _ROWS})


@dataclass(frozen=True)
class _Spelling:
    """A form that the pass `name` can write in another way: where the target lacks it, or is the one `preferring`.

    Attributes:
        changes: options and their new values; None leaves one out.
    """

    form: str
    name: str
    changes: Mapping[str, str | None]
    why: str
    preferring: str = ""

    def asked_by(self, target: Target) -> bool:
        """Whether the target wants the other way."""
        return self.preferring == target.name if self.preferring else self.form not in target.forms

    def rewritten(self, step: Step) -> Step:
        """The step in the other way."""
        kept = {key: value for key, value in step.options.items() if key not in self.changes}
        made = {key: value for key, value in self.changes.items() if value is not None}
        return replace(step, options={**kept, **made})


_CARRIED = MappingProxyType({"deployment": "int8-carrier", "block": None})
_SPELLINGS = (
    *(_Spelling(form, "qdq-int4", _CARRIED, "INT4 codes beside quantised data are research there: the 4-bit values are "
                "written in INT8 tensors, with one scale an output channel") for form in _NATIVE),
    _Spelling(_INT4, "int4-weights", {"runtime": "onnxruntime", "for": None},
              "4-bit weights are written as MatMulNBits nodes, which name onnxruntime's kernels for them", "cpu"),
    _Spelling(NBITS, "int4-weights", {"runtime": "tensorrt", "for": None},
              "TensorRT has no MatMulNBits: 4-bit weights are written before DequantizeLinear nodes"),
)  # fmt: skip
_REMEDIES = {
    **dict.fromkeys(_FP8, "qdq-int8 is as small, and every GPU from SM 8.0 on runs it"),
    **dict.fromkeys(_FP4, "qdq-int4 has 4-bit values in INT8 tensors; int4-weights has 4-bit weights in blocks"),
}


def target_of(name: str) -> Target:
    """The row of a name. Raises UsageError for any other."""
    if name not in TARGETS:
        raise UsageError(
            f"there is no target {name!r}",
            where="--target",
            expected=f"one of {', '.join(TARGETS)}",
            hint=did_you_mean(name, TARGETS) or "gpusq-onnx passes show targets",
        )
    return TARGETS[name]


def fit(pipeline: Pipeline, name: str) -> tuple[Pipeline, list[str]]:
    """A pipeline (presets expanded) as the target runs it, and what its user should know, a sentence each.

    Raises:
        UsageError: there is no such target.
        UnsupportedModelError: a pass writes what the target does not run.
    """
    target, known = target_of(name), table.rows()
    steps, made, notes = list[Step](), list[Written](), list[str]()
    for step in pipeline.steps:
        written = _written(step, known)
        rows = [row for form in written.forms for row in _SPELLINGS if (row.form, row.name) == (form, step.name)]
        if row := next((row for row in rows if row.asked_by(target)), None):
            step = row.rewritten(step)
            written = _written(step, known)
            notes.append(f"{row.why} ({step})")
        _require(step, written, target)
        steps.append(step)
        made.append(written)
    notes += _conditions(made, target)
    return Pipeline(tuple(steps)), [f"target {target.name}: {note}" for note in dict.fromkeys(notes)]


def too_new(name: str, opset: int) -> list[str]:
    """The sentence about a model of a newer opset than the target is known to read."""
    target = target_of(name)
    if opset <= target.opset:
        return []
    return [f"target {name}: the model has opset {opset}; {target.runtime} is known to read up to {target.opset} there"]


def _written(step: Step, known: Mapping[str, table.PassRow]) -> Written:
    return table.one(step, known).writes()


def _require(step: Step, written: Written, target: Target) -> None:
    for form in written.forms:
        if form not in target.forms:
            raise UnsupportedModelError(
                f"the target {target.name!r} does not run {form}",
                where=str(step),
                expected=f"one of {', '.join(sorted(target.forms))}",
                found=f"{target.gpus}, {target.runtime}",
                hint=_REMEDIES.get(form, "gpusq-onnx passes show targets"),
            )


def _conditions(written: Sequence[Written], target: Target) -> Iterator[str]:
    for form in (form for one in written for form in one.forms):
        if target.forms[form]:
            yield f"{form}: {target.forms[form]}"
    patterns = [text for one in written for text in one.patterns]
    fast = [text for text in patterns if any(parse_pattern(text).implies(parse_pattern(s)) for s in target.sparse)]
    for text in patterns:
        if text not in fast:
            yield f"there are no sparse kernels for {text}: it packs small and runs dense"
    if fast and any(set(one.forms) & set(_INT8) and not one.narrow_outputs for one in written):
        yield f"sparse INT8 kernels want {target.placement}"
