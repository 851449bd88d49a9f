"""The proof of a run: what was written loads in everybody's session, and computes there what it says.

    before    the model runs once in a process of its own, before any pass runs it in this one: a model that ends
              onnxruntime is an error that names the node
    same      where reading it made other nodes (older opsets, local functions, sparse weights) or exact passes began
              the work, what came of that runs, and so does the file; the two results are compared
    after     the written file, before it gets its name, is loaded with onnxruntime's defaults and without
              optimisations, at once where that fits; both run one batch, and the two results are compared

What may differ is arithmetic alone. Fusions regroup float graphs: 1e-3 of an output's norm is a hundred times what that
costs in float32, and 3e-2 in half precision. Integer kernels round once where a Q/DQ graph rounds twice, in other
places on each kind of CPU; what that moves is of the size of the rounding errors themselves. So a fifth of the norm is
let pass, and above it twice the distance that the graph as written has from itself without Q/DQ. A kernel that misreads
a scale, a zero point or an axis is off by the size of the output itself (tests). On x64 CPUs without VNNI the default
integer kernels saturate, which is the CPU's fault and not the file's: the precise ones are judged there, and a warning
says what the defaults lose. The same goes for fused products with 4-bit weights, whose data the defaults round to INT8.

What no CPU kernel runs has another way, which the report names (`graph.qdq.simulated`): FP8 products with Q/DQ as
written in place of the defaults, FP4 as the twin in ordinary operators.

Outputs after a choice (`graph.continuity`) are reported and not judged, but that NaN may not come up. A model that came
in like that (an operator of another domain, or one that onnxruntime does not have) is not our fault: a warning says
that nothing could be proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpusq_onnx.errors import InvariantError, UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.continuity import smooth_outputs
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import QUANTISERS
from gpusq_onnx.graph.qdq.float_twin import remove_quantisation
from gpusq_onnx.graph.qdq.simulated import NOTES, runs_as, twin_of
from gpusq_onnx.graph.qdq.weight_only import find_nbits, keep_data, rounds_data
from gpusq_onnx.graph.shapes import Types
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.pipeline.agreement import agreement, distance, distance_text, within
from gpusq_onnx.pipeline.outcome import OutputAgreement, Proof
from gpusq_onnx.runtime.ort import Feed
from gpusq_onnx.runtime.trial import WAYS, Attempt, Trial, Trials, Way
from gpusq_onnx.scratch import Scratch

_FLOAT, _HALF, _QUANTISED = 1e-3, 3e-2, 0.2
_KILLED = "SIGKILL"
_RAN = {"default": ("ran", "ran"), "exact": ("unfused: ran", "ran"), "twin": ("twin: ran", "twin: ran")}


@contextmanager
def survival(model: Model, trials: Trials, feed: Feed | None) -> Iterator[Callable[[], Trial]]:
    """Run the model, as it is now, once elsewhere while the block does something else.

    Args:
        feed: one batch; None: a random one.

    Returns:
        What waits for the end, and raises UnsupportedModelError where the model ends onnxruntime's process: it names
        the first node that does. A model that onnxruntime refuses or fails to run is left to who runs it.
    """
    with _stored(model) as path, trials.beside(path, feed, "default") as wait:
        yield lambda: _survivor(model, trials.with_feed(feed), wait())


def require_survival(model: Model, trials: Trials, feed: Feed | None) -> Trial:
    """The same, waited for."""
    with survival(model, trials, feed) as wait:
        return wait()


def _survivor(model: Model, attempt: Attempt, trial: Trial) -> Trial:
    if trial.outcome == "died":
        raise UnsupportedModelError(
            "onnxruntime crashes on the model",
            where=None if _KILLED in trial.said else _first_fatal(model, attempt, trial.way),
            expected="a model that a session loads and runs",
            found=str(trial),
            hint="give it more memory: that is what the system kills for"
            if _KILLED in trial.said
            else "export the model again without this form of the node, or with another onnxruntime installed",
        )
    return trial


def require_same(path: Path, model: Model, types: Types, attempt: Attempt) -> None:
    """See that `model`, as it was read and rewritten, computes what its file does; nothing is known where that fails.

    Raises:
        InvariantError: it does not.
    """
    (filed,) = attempt(path, ["default"])
    if filed.outcome != "ran":
        return
    (read,) = _of_model(model, attempt, ["default"])
    smooth, bound, others = smooth_outputs(model, types), _bound(model, types), read.outputs
    found = [agreement(name, x, others[name], name in smooth) for name, x in filed.outputs.items() if others]
    apart = [one for one in found if not within(one, bound)]
    if read.outcome == "ran" and (not apart or _differs_itself(path, attempt, {one.output for one in apart})):
        return
    raise InvariantError(
        "the model as it was read and rewritten does not compute what its file does",
        where=f"output {apart[0].output!r}" if apart else None,
        expected=f"the same to {bound:g} of its norm",
        found=distance_text(apart[0]) if apart else str(read),
        hint="this is a defect; a model that was exported with opset 20, without functions, needs less rewriting",
    )


def prove(written: Path, model: Model, types: Types, before: Path, attempt: Attempt) -> Proof:
    """Prove the file `written` to be what `model` is.

    Args:
        types: of the model's tensors, as inference knows them.
        before: the input file of the run, which is tried where something is wrong, to tell whose fault it is.
        attempt: tries out a file with one batch.

    Raises:
        InvariantError: a session refuses the file, or its results differ by more than arithmetic.
    """
    runs = runs_as(model)
    ways: Sequence[Way] = ("exact", "unoptimised") if runs == "exact" else WAYS
    trials = _of_model(twin_of(model), attempt) if runs == "twin" else _of_file(written, attempt, ways)
    bad = [trial for trial in trials if not trial.went]
    if bad:
        return _unproven(bad, _of_model(io.load(before), attempt, [trial.way for trial in bad]))
    default, plain = trials
    if plain.outcome != "ran" or default.outcome != "ran":
        return Proof(
            default.outcome, plain.outcome, (), f"the written model is loaded by onnxruntime and not run: {plain.said}"
        )
    _require_ranks(model, plain, before, attempt)
    smooth = smooth_outputs(model, types)
    found = tuple(agreement(name, x, default.outputs[name], name in smooth) for name, x in plain.outputs.items())
    shown = Proof(*_RAN[runs], found, NOTES.get(runs))
    bound = _bound(model, types)
    apart = [one for one in found if not within(one, bound)]
    lost = [one for one in apart if not one.finite]
    if lost and _is_half(types):
        note = f"FP16 overflows: with onnxruntime's defaults {lost[0].output!r} has NaN or infinity, where the same "
        note += "nodes run one by one have none; fp16 finds such tensors with --data"
        apart, shown = [one for one in apart if one.finite], replace(shown, note=note)
    if apart and bound == _QUANTISED:
        apart, shown = _without_kernels(written, model, attempt, plain, shown, apart)
    if not apart:
        return shown
    if _differs_itself(before, attempt, {one.output for one in apart}):
        note = "the input model itself gives other outputs with onnxruntime's defaults than without optimisations"
        return replace(shown, note=note)
    one = apart[0]
    raise InvariantError(
        "the written model computes something else with onnxruntime's defaults than as it is written",
        where=f"output {one.output!r}",
        expected=f"the same to {bound:g} of its norm",
        found=distance_text(one),
        hint="this is a defect; the reproducer beside the output shows it",
    )


def _require_ranks(model: Model, plain: Trial, before: Path, attempt: Attempt) -> None:
    """Raise InvariantError where an output has fewer or more axes than it declares, and had as many before."""
    declared = {spec.name: len(spec.shape) for spec in model.outputs() if spec.shape}  # empty: not declared, too
    odd = {name: x for name, x in plain.outputs.items() if x.ndim != declared.get(name, x.ndim)}
    if not odd:
        return
    (came,) = attempt(before, ["default"])
    for name, x in odd.items():
        if name in came.outputs and came.outputs[name].ndim != x.ndim:
            raise InvariantError(
                "an output of the written model has another number of axes",
                where=f"output {name!r}",
                expected=f"shape {list(came.outputs[name].shape)}",
                found=f"shape {list(x.shape)}",
                hint="this is a defect; the reproducer beside the output shows it",
            )


def _of_file(written: Path, attempt: Attempt, ways: Sequence[Way]) -> list[Trial]:
    """A written file, its weights mapped where they lie in it; read as any session reads it, where that goes wrong."""
    mapped = written.with_name(f"{written.name}.mapped")
    if io.write_mapped(written, mapped):
        trials = attempt(mapped, ways, size=written.stat().st_size)
        if all(trial.went for trial in trials):
            return trials
    return attempt(written, ways)


def _of_model(model: Model, attempt: Attempt, ways: Sequence[Way] = WAYS) -> list[Trial]:
    with _stored(model) as path:
        return attempt(path, ways)


@contextmanager
def _stored(model: Model) -> Iterator[Path]:
    """A model in memory as a file: what the tool reads is not always what lies in the input (`graph.tidy`)."""
    with Scratch() as folder:
        path = folder / "model.onnx"
        io.write_tapped(model, path, [spec.name for spec in model.outputs()])
        yield path


def _unproven(bad: Sequence[Trial], before: Sequence[Trial]) -> Proof:
    """Where the model that came in went wrong in the same way, all that can be said; else our fault.

    Raises:
        InvariantError: what came in runs.
        UnsupportedModelError: it loads, and does not run; what is written would not even load.
    """
    ours = [after for after, came in zip(bad, before, strict=True) if came.went]
    if ours:
        raise InvariantError(
            "the written model does not run where the input model does",
            expected="a file that every onnxruntime session loads and runs",
            found="; ".join(map(str, ours)),
            hint="this is a defect; the reproducer beside the output shows it",
        )
    for after, came in zip(bad, before, strict=True):
        if came.outcome == "failed" and after.outcome != "failed":
            raise UnsupportedModelError(
                "onnxruntime loads the model and does not run it, and would not load what comes of it",
                expected="a model that runs on one batch",
                found=came.said,
                hint="see that the original runs: check it against itself",
            )
    ends = {trial.way: str(trial.outcome) for trial in bad}
    note = f"nothing is proven of the written model in onnxruntime, as of the input model: {bad[0]}"
    return Proof(ends.get("default", "ran"), ends.get("unoptimised", "ran"), (), note)


def _differs_itself(before: Path, attempt: Attempt, outputs: set[str]) -> bool:
    model = io.load(before)
    default, plain = _of_model(model, attempt)
    if default.outcome != "ran" or plain.outcome != "ran":
        return False
    pairs = [(plain.outputs[name], default.outputs[name]) for name in outputs & plain.outputs.keys()]
    distances = [distance(a, b) for a, b in pairs]
    return any(far is None or far > _FLOAT for far in distances)


def _bound(model: Model, types: Types) -> float:
    if any(node.op == "DequantizeLinear" for node in model.graph.nodes) or any(map(rounds_data, find_nbits(model))):
        return _QUANTISED
    return _HALF if _is_half(types) else _FLOAT


def _is_half(types: Types) -> bool:
    return any(kind.kind in "fV" and kind.itemsize == 2 for kind in types.values())


def _without_kernels(
    written: Path, model: Model, attempt: Attempt, plain: Trial, shown: Proof, apart: list[OutputAgreement]
) -> tuple[list[OutputAgreement], Proof]:
    """Those of a quantised model's outputs that are too far off with precise kernels too, and for its own rounding."""
    precise = _precisely(written, model, attempt)
    others = precise.outputs if precise.outcome == "ran" else {}
    exact = [agreement(o.output, plain.outputs[o.output], others[o.output], o.judged) if others else o for o in apart]
    if all(within(one, _QUANTISED) for one in exact):
        return [], replace(shown, note=_kernels(model, apart[0]))
    noise = _rounding(model, attempt, plain)

    def far(found: list[OutputAgreement]) -> list[OutputAgreement]:
        return [one for one in found if not within(one, max(_QUANTISED, 2 * noise.get(one.output, 0.0)))]

    if not far(apart):
        return [], shown
    left = far(exact)
    return (left, shown) if left else ([], replace(shown, note=_kernels(model, apart[0])))


def _precisely(written: Path, model: Model, attempt: Attempt) -> Trial:
    """The written file by precise kernels; MatMulNBits nodes, which name theirs, as if they named a precise one."""
    if not any(map(rounds_data, find_nbits(model))):
        return _of_file(written, attempt, ["precise"])[0]
    kept = model.clone()
    keep_data(kept)
    return _of_model(kept, attempt, ["precise"])[0]


def _kernels(model: Model, worst: OutputAgreement) -> str:
    """What the default kernels do to an output, and who does not."""
    by = "" if worst.relative is None else f" by {worst.relative:.2g} of its norm"
    moved = f"move {worst.output!r}{by}"
    if any(node.op in QUANTISERS for node in model.graph.nodes):
        return (
            f"onnxruntime's default INT8 kernels saturate on this CPU, and {moved}; "
            "CPUs with VNNI, GPUs and session.x64quantprecision=1 do not"
        )
    exact = "TensorRT and session.qdq_matmulnbits_accuracy_level=1 do not"
    if any(map(rounds_data, find_nbits(model))):
        exact = "int4-weights{runtime=onnxruntime,accuracy_level=1} does not"
    return f"onnxruntime's default kernels for 4-bit weights round their data to INT8, and {moved}; {exact}"


def _rounding(model: Model, attempt: Attempt, plain: Trial) -> dict[str, float]:
    """How far the outputs are from those of the same graph without Q/DQ."""
    twin = model.clone()
    remove_quantisation(twin)
    (found,) = _of_model(twin, attempt, ["unoptimised"])
    distances = {name: distance(x, plain.outputs[name]) for name, x in found.outputs.items() if name in plain.outputs}
    return {name: far for name, far in distances.items() if far is not None}


def _first_fatal(model: Model, attempt: Attempt, way: Way) -> str:
    """The first node with which the graph ends onnxruntime: found by cutting the graph ever shorter."""
    nodes = list(model.graph.nodes)
    low, high = 0, len(nodes)  # the first `low` nodes run, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if _prefix_dies(model, middle, attempt, way):
            high = middle
        else:
            low = middle
    return node_label(nodes[low])


def _prefix_dies(model: Model, count: int, attempt: Attempt, way: Way) -> bool:
    part = model.clone()
    del part.graph.nodes[count:]
    outputs = [tensor.name for tensor in part.graph.nodes[-1].outputs if tensor.name]
    with Scratch() as folder:
        path = folder / "part.onnx"
        io.write_tapped(part, path, outputs)
        return attempt(path, [way])[0].outcome == "died"
