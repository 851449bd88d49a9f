"""Optimisation profiles: which input shapes an engine takes, and for which of them it is made fast.

    batch   "32"         every input with a dynamic first axis has 32 there
            "1,32"       1 to 32, tuned for 32
            "1,32,256"   1 to 256, tuned for 32: the batch that will be deployed
    shapes  "images:1x3x320x320,8x3x320x320,16x3x320x320": the same for one input, every axis given

TensorRT times its kernels at the *opt* shape, and whether sparse ones win depends on it (TensorRT developer guide,
"Working with Dynamic Shapes"). Limits: inputs whose values are shapes ("shape tensors") take no profile here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph.model import TensorSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bounds:
    """The smallest, the tuned and the largest value: of a batch size as shapes of one axis, or of an input's shape."""

    min: Shape
    opt: Shape
    max: Shape


Profile = dict[str, Bounds]
"""Bounds by input name."""


def parse_batch(text: str) -> Bounds:
    """The bounds of a batch size, as one-element shapes.

    >>> parse_batch("1,32,256")
    Bounds(min=(1,), opt=(32,), max=(256,))

    Raises:
        UsageError: not one to three positive numbers in rising order.
    """
    return _bounds([_shape(part, text, "--batch") for part in text.split(",")], text, "--batch")


def parse_shapes(text: str) -> tuple[str, Bounds]:
    """An input's name and the bounds of its shape; `x=1x8` says the same as `x:1x8`.

    >>> parse_shapes("x:1x8,32x8")
    ('x', Bounds(min=(1, 8), opt=(32, 8), max=(32, 8)))

    Raises:
        UsageError: no name, or not one to three shapes of one rank in rising order.
    """
    name, _, shapes = text.rpartition("=" if "=" in text else ":")
    if not name:
        raise _unreadable(text, "--shapes")
    return name, _bounds([_shape(part, text, "--shapes") for part in shapes.split(",")], text, "--shapes")


def make_profiles(
    inputs: Sequence[TensorSpec], batches: Sequence[Bounds] = (), shapes: Mapping[str, Bounds] | None = None
) -> tuple[Profile, ...]:
    """One profile for each batch (batch 1 where none is given); `shapes` fixes inputs that a batch alone does not.

    Raises:
        UsageError: a shape that does not fit its input, an input that is not there, a dynamic axis that nobody sets, a
            batch for a model that has no batch axis left open, several batches together with shapes.
    """
    given = dict(shapes or {})
    known = {spec.name: spec for spec in inputs}
    if unknown := sorted(set(given) - set(known)):
        raise UsageError(
            f"no input is named {', '.join(unknown)}", where="--shapes", expected=f"one of {', '.join(known)}"
        )
    if given and len(batches) > 1:
        raise UsageError(
            "--shapes describes one profile", found=f"{len(batches)} times --batch", hint="give one of them"
        )
    for name, bounds in given.items():
        _check(known[name], bounds)
    if batches and opens_batch(inputs) and not opens_batch([spec for spec in inputs if spec.name not in given]):
        raise UsageError(
            "--shapes says the batch of every input, and leaves nothing to --batch",
            where="--batch",
            hint="leave --batch out, and give --shapes its bounds: INPUT:MIN,OPT,MAX",
        )
    profiles = tuple(
        {spec.name: given.get(spec.name) or _of_batch(spec, batch) for spec in inputs}
        for batch in batches or [Bounds((1,), (1,), (1,))]
    )
    if batches and not any(_open_batch(spec) for spec in inputs):
        _require_own_batch(inputs, batches)
    return profiles


def opens_batch(inputs: Sequence[TensorSpec]) -> bool:
    """Whether the caller has a batch size to choose."""
    return any(_open_batch(spec) for spec in inputs)


def tuned_batch(profile: Profile) -> int:
    """The batch that a profile is tuned for: the largest first axis of its opt shapes (1 without any)."""
    return max((bounds.opt[0] for bounds in profile.values() if bounds.opt), default=1)


def _of_batch(spec: TensorSpec, batch: Bounds) -> Bounds:
    rest = spec.shape[1:]
    if open_axes := [axis for axis, size in enumerate(rest, 1) if not isinstance(size, int)]:
        raise UsageError(
            f"input {spec.name} has dynamic axes besides the batch",
            found=f"{_text(spec)}, axes {', '.join(map(str, open_axes))}",
            hint=f"give --crop PX for images, or --shapes {spec.name}:MIN,OPT,MAX with every axis, e.g. 1x3x224x224",
        )
    fixed = tuple(size for size in rest if isinstance(size, int))
    if not _open_batch(spec):
        own = tuple(size for size in spec.shape if isinstance(size, int))
        return Bounds(own, own, own)
    return Bounds(batch.min + fixed, batch.opt + fixed, batch.max + fixed)


def _open_batch(spec: TensorSpec) -> bool:
    return bool(spec.shape) and not isinstance(spec.shape[0], int)


def _require_own_batch(inputs: Sequence[TensorSpec], batches: Sequence[Bounds]) -> None:
    own = {spec.shape[0] for spec in inputs if spec.shape}
    wanted = {size for batch in batches for (size,) in (batch.min, batch.opt, batch.max)}
    if wanted != own:
        raise UsageError(
            "the model's batch size is fixed",
            where="--batch",
            expected=" or ".join(map(str, sorted(map(str, own)))) or "no batch axis",
            found=", ".join(map(str, sorted(wanted))),
            hint="export the model with a dynamic batch axis, or leave --batch out",
        )


def _check(spec: TensorSpec, bounds: Bounds) -> None:
    for shape in (bounds.min, bounds.opt, bounds.max):
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(size, int) or size == wanted for size, wanted in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"the shape does not fit input {spec.name}",
                where="--shapes",
                expected=_text(spec),
                found="x".join(map(str, shape)),
            )


def _bounds(shapes: Sequence[Shape], text: str, option: str) -> Bounds:
    if not 1 <= len(shapes) <= 3:
        raise _unreadable(text, option)
    found = Bounds(shapes[0], shapes[1] if len(shapes) > 1 else shapes[0], shapes[-1])
    if len({len(shape) for shape in shapes}) > 1:
        raise _unreadable(text, option)
    for lower, upper in ((found.min, found.opt), (found.opt, found.max)):
        if any(a > b for a, b in zip(lower, upper, strict=True)):
            raise UsageError("the sizes must rise: smallest, tuned, largest", where=option, found=text)
    return found


def _shape(part: str, text: str, option: str) -> Shape:
    sizes = part.strip().split("x") if option == "--shapes" else [part.strip()]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise _unreadable(text, option)
    return tuple(map(int, sizes))


def _unreadable(text: str, option: str) -> UsageError:
    expected = {
        "--batch": "N, or MIN,MAX, or MIN,OPT,MAX: positive numbers",
        "--shapes": "INPUT=SHAPE, or INPUT:MIN,OPT,MAX; a shape is 1x3x224x224",
    }
    return UsageError(f"{option} cannot be read", expected=expected[option], found=text)


def _text(spec: TensorSpec) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in spec.shape)}]"
