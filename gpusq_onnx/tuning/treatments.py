"""What a group of layers can be made into: a pattern, a scheme of formats, both or neither, as rows of one table.

    dense      as it is stored
    2:4        pruned, float
    int8       INT8 weights and data
    2:4 int8   both
    w4a8       4-bit weights in INT8 tensors, INT8 data; `2:4 w4a8`: pruned, too

Which rows a target has is asked of `pipeline.targets`: its forms and its sparse kernels. Without a target the 4-bit
rows are left out: no tensor core that a library reaches multiplies them faster than INT8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.grammar import did_you_mean
from gpusq_onnx.pipeline.targets import target_of
from gpusq_onnx.quant.schemes import SCHEMES, Scheme
from gpusq_onnx.sparsity.patterns import TWO_FOUR, Pattern

DENSE = "dense"


@dataclass(frozen=True)
class Treatment:
    """One row.

    Attributes:
        name: as reports spell it.
        pattern: of the weights; None: not pruned.
        scheme: of weights and data; None: float.
    """

    name: str
    pattern: Pattern | None = None
    scheme: Scheme | None = None


_INT8, _W4A8 = SCHEMES["int8"], SCHEMES["w4a8"]
TREATMENTS: Mapping[str, Treatment] = MappingProxyType(
    {
        row.name: row
        for row in (
            Treatment(DENSE),
            Treatment("2:4", TWO_FOUR),
            Treatment("int8", None, _INT8),
            Treatment("2:4 int8", TWO_FOUR, _INT8),
            Treatment("w4a8", None, _W4A8),
            Treatment("2:4 w4a8", TWO_FOUR, _W4A8),
        )
    }
)


def offered(target: str | None, forms: Sequence[str] = ()) -> list[Treatment]:
    """The rows to choose among, `dense` first.

    Args:
        target: a name of `pipeline.targets`, which leaves out what it does not run; None: INT8 and 2:4.
        forms: only these names; empty: all that the target has.

    Raises:
        UsageError: an unknown target or form, or one that the target does not run.
    """
    row = None if target is None else target_of(target)
    rows = []
    for treatment in TREATMENTS.values():
        if row is None:
            runs = treatment.scheme is not _W4A8 or treatment.name in forms
        else:
            sparse = treatment.pattern is None or treatment.pattern.name in row.sparse
            runs = sparse and (treatment.scheme is None or treatment.scheme.form in row.forms)
        if runs:
            rows.append(treatment)
    names = [treatment.name for treatment in rows]
    for name in forms:
        if name not in names:
            raise UsageError(
                f"there is no form {name!r} to choose" + (f" on {target}" if name in TREATMENTS else ""),
                where="--forms",
                expected=f"some of {', '.join(names if name in TREATMENTS else TREATMENTS)}",
                hint=did_you_mean(name, names),
            )
    return [treatment for treatment in rows if treatment.name == DENSE or not forms or treatment.name in forms]
