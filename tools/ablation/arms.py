"""What the ablation compares, as data: each arm is a pipeline, and a claim is an order of two arms.

    float      how a pruned float model is trained (`distill`); controls: nothing, and the dense model trained alike
    int8, int4 how the quantised sparse model is trained (`qat`), from one sparse float model a seed

Source: GPUSQ-ViT, Table 6 (loss terms and weight factors), docs/method.md, "What must hold in an honest comparison"
(the other arms and the controls: ours).
"""

from __future__ import annotations

from dataclasses import dataclass

FULL = "full"
GROUPS = ("float", "int8", "int4")  # what a group starts from, the next one starts from, too


PAPER = (
    "alpha=1 beta=10 gamma=5 temperature=3 gate=true reduce=sum features=stages "
    "blockwise=0 tokens=1 bound=0 vector_lr=1 scale_lr=0.1"
)
"""What an arm is trained with where it does not say otherwise: the paper's losses, whatever the defaults are."""
PAPER_TEACHER = "against=sparse"
"""Of `qat`, likewise."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: what the table calls it.
        group: "float", "int8" or "int4".
        options: of `distill` or `qat`, in place of the paper's; None: no training.
        dense: start from the dense model instead of the pruned one.
    """

    name: str
    group: str
    options: str | None = ""
    dense: bool = False

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.group}.{self.name.replace(' ', '-')}"


@dataclass(frozen=True)
class Claim:
    """`better` should score higher than `worse`, by the paper or by us."""

    text: str
    better: str
    worse: str


_LOSSES = {
    "hard": "beta=0 gamma=0",
    "hard+soft": "gamma=0",
    "hard+features": "beta=0",
    FULL: "",
    "gate off": "gate=false",
    "plain features": "feature_loss=plain",
}
_FACTORS = {
    "w none": "factors=none",
    "w uniform": "factors=uniform",
    "w raw-inverse": "factors=raw-inverse",
    "w proportional": "factors=proportional",
    "w shuffled": "factors=shuffled",
    "dense teacher": "against=dense",
}
SHIPPED = {
    "distill": (
        "alpha=0 beta=1 gamma=40 temperature=1 gate=false reduce=mean features=blocks bound=8 blockwise=0.8 tokens=0.5"
    ),
    "qat": (
        "alpha=0 beta=1 temperature=1 gate=false reduce=mean features=blocks "
        "lr=4e-6 vector_lr=25 scale_lr=2.5 against=auto"
    ),
}
"""Our own recipes, the passes' defaults, at the size of this table."""


def arms() -> list[Arm]:
    """All arms, in the order of the table."""
    found = [Arm("one-shot", "float", None)]
    found += [Arm(name, "float", options) for name, options in _LOSSES.items()]
    found += [Arm("shipped", "float", SHIPPED["distill"]), Arm("dense + training", "float", "", dense=True)]
    for group in ("int8", "int4"):
        found += [Arm("calibrated", group, None)]
        both = (_LOSSES | _FACTORS).items()
        found += [Arm(name, group, f"{PAPER_TEACHER} {options}") for name, options in both]
        found += [Arm("shipped", group, SHIPPED["qat"])]
    return found


def claims() -> list[Claim]:
    """The orders that the paper's Table 6 shows, checked and reported also where they fail."""
    found = [
        Claim("soft labels help (float)", "float.hard+soft", "float.hard"),
        Claim("features help (float)", f"float.{FULL}", "float.hard+soft"),
    ]
    for group in ("int8", "int4"):
        found += [
            Claim(f"soft labels help ({group})", f"{group}.hard+soft", f"{group}.hard"),
            Claim(f"features help ({group})", f"{group}.{FULL}", f"{group}.hard+soft"),
            Claim(f"weight factors help ({group})", f"{group}.{FULL}", f"{group}.w-none"),
            Claim(f"their shares, not their total ({group})", f"{group}.w-raw-inverse", f"{group}.w-uniform"),
            Claim(f"their places, not their values ({group})", f"{group}.{FULL}", f"{group}.w-shuffled"),
            Claim(f"the sparse teacher is the better one ({group})", f"{group}.{FULL}", f"{group}.dense-teacher"),
        ]
    return found
