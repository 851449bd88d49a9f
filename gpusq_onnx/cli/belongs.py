"""Which options go with which: every verb asks, so that nothing that was given is ignored in silence."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from gpusq_onnx.errors import UsageError

_PREPARING = (
    *("--samples", "--data-preset", "--resize", "--crop-ratio", "--crop", "--fit", "--mean", "--std", "--classes"),
    *("--layout", "--channels", "--interpolation", "--max-pixels", "--seed"),
)

NEEDS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "check": {
            "--tap-tolerance": ("--taps",),
            "--build": ("--parser",),
            "--cpu-harness": ("--parser",),
            "--trt-cache": ("--parser",),
            "--shapes": ("--build",),
        },
        "plan": dict.fromkeys(("--forms", "--images", "--exact", "--no-cache"), ("--sensitivity",)),
        "tune": {"--rounds": ("--finetune", "--finetune-steps")},
        "report": dict.fromkeys(_PREPARING, ("--data", "--data-options")),
    }
)
"""By verb and option, those of which one must be given, too: without it the option would do nothing."""

BARS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "plan": {
            "--sensitivity": (
                *("--passes", "--recipe", "--set", "--allow-noop", "--no-canonical"),
                *("--finetune", "--finetune-steps"),
            )
        },
        "tune": {"--analysis-only": ("--output",)},
    }
)
"""By verb and option, those that do nothing where it is given."""


def require_company(verb: str, given: Iterable[str]) -> None:
    """Refuse an option without what it needs, or beside what leaves it nothing to do.

    Raises:
        UsageError: the first such option.
    """
    known = set(given)
    for option, others in NEEDS.get(verb, {}).items():
        if option in known and known.isdisjoint(others):
            wanted = " or ".join(others)
            raise UsageError(f"{option} goes with {wanted}", where=verb, hint=f"add {wanted}, or leave {option} out")
    for option, others in BARS.get(verb, {}).items():
        if option in known and not known.isdisjoint(others):
            idle = ", ".join(other for other in others if other in known)
            raise UsageError(f"{option} takes no {idle}", where=verb, hint="leave one of them out")
