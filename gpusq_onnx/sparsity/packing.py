"""Weights of a sparse pattern in the space that the pattern needs: kept values, and where they were.

    pattern    of each `of` units (elements, or pairs) `keep` are kept: any row of `sparsity.patterns`
    dense      all are kept; narrow values only

Each kept unit has an index of `place_bits` bits, 2 for groups of four, in rising order. A group with fewer non-zero
units keeps zeros, those of the lowest places. Values are 4, 8, 16 or 32 bits wide; 4-bit ones are the integers -8 to 7,
in two's complement.

    bits a weight = density * width + metadata bits:  FP16 9, INT8 5, 4-bit 3 (2:4); 4-bit 2.5 (4:8pair)

Bit by bit: an element counts as zero only when all its bits are zero, so -0.0 is kept. Little endian within a byte: the
first value, or the first index, has the low bits.

Source: GPUSQ-ViT (arXiv 2305.10727), section 3.1. Limits: k must be a multiple of the pattern's group.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import GpusqError
from gpusq_onnx.sparsity.patterns import Pattern, parse_pattern, patterns_of

Bytes = NDArray[np.uint8]

DENSE = "dense"
_CODES: dict[int, np.dtype[np.unsignedinteger[Any]]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}


@dataclass(frozen=True)
class Packed:
    """A packed matrix.

    Attributes:
        pattern: the name of a pattern, or "dense".
        width: bits of a value.
        shape: [rows, k].
        itemsize: bytes of an element as it was.
        values: the kept values in order, uint8.
        indices: the kept places, `place_bits` each, uint8; empty for "dense".
    """

    pattern: str
    width: int
    shape: tuple[int, int]
    itemsize: int
    values: Bytes
    indices: Bytes

    @property
    def form(self) -> "PackedForm":
        """Its pattern and width."""
        return PackedForm(self.pattern, self.width)

    @property
    def bits(self) -> float:
        """Bits a weight, indices included."""
        return bits_a_weight(self.pattern, self.width)


def bits_a_weight(pattern: str, width: int) -> float:
    """What one weight takes. Raises ValueError for no pattern.

    >>> [bits_a_weight("2:4", 16), bits_a_weight("2:4", 8), bits_a_weight("4:8pair", 4), bits_a_weight("dense", 4)]
    [9.0, 5.0, 2.5, 4.0]
    """
    if pattern == DENSE:
        return float(width)
    rule = _rule(pattern)
    return rule.density * width + rule.metadata_bits


@dataclass(frozen=True)
class PackedForm:
    """How a matrix is packed: the name of a pattern, or "dense", and the bits of a value."""

    pattern: str
    width: int

    @property
    def bits(self) -> float:
        """Bits a weight, indices included."""
        return bits_a_weight(self.pattern, self.width)

    def sizes(self, rows: int, k: int) -> tuple[int, int]:
        """The bytes of the values and of the indices of a matrix [rows, k].

        Raises:
            ValueError: no such pattern, or one that does not divide k.
        """
        if min(rows, k) < 0:
            raise ValueError(f"a matrix of {rows} x {k}")
        if self.pattern == DENSE:
            return (rows * k * self.width + 7) // 8, 0
        rule = _rule(self.pattern)
        if k % rule.group:
            raise ValueError(f"{self.pattern} needs k % {rule.group} == 0; found {(rows, k)}")
        kept = rows * k // rule.group * rule.keep
        return (kept * rule.unit * self.width + 7) // 8, (kept * rule.place_bits + 7) // 8


def smallest_form(w: NDArray[Any]) -> PackedForm | None:
    """The form of w[rows, k] (any type of 1, 2 or 4 bytes) that takes the fewest bits; None: none is smaller than w.

    Raises:
        ValueError: not 2-D, or elements of another size.
    """
    codes = _codes(w)
    width = 4 if _fits_four_bits(codes) else 8 * codes.itemsize
    known = (PackedForm(rule.name, width) for rule in (patterns_of(codes) if codes.size else ()))
    best = min(known, key=lambda form: form.bits, default=None)
    if best is None and width < 8 * codes.itemsize:
        return PackedForm(DENSE, width)
    return best


def pack(w: NDArray[Any], form: PackedForm | None = None) -> Packed | None:
    """w[rows, k] in a form that it has, by default `smallest_form`; None where there is none. Raises as that."""
    codes = _codes(w)
    form = form or smallest_form(codes)
    if form is None:
        return None
    shape, size = (codes.shape[0], codes.shape[1]), codes.itemsize
    if form.pattern == DENSE:
        return Packed(DENSE, form.width, shape, size, _narrowed(codes, form.width), _NOTHING)
    rule = _rule(form.pattern)
    units = codes.reshape(-1, rule.group).view(f"<u{size * rule.unit}")  # [groups, of]
    places = _kept_places(units, rule)
    kept = np.take_along_axis(units, places, axis=1)
    values = _narrowed(kept.view(codes.dtype), form.width)
    return Packed(form.pattern, form.width, shape, size, values, _packed_bits(places, rule.place_bits))


def unpack(packed: Packed) -> NDArray[Any]:
    """The matrix, bit for bit, as unsigned integers of its element's size.

    Raises:
        ValueError: values or indices are not what pattern, width and shape ask for.
    """
    rows, k = packed.shape
    for what, needed, found in zip(
        ("values", "indices"), packed.form.sizes(rows, k), (packed.values, packed.indices), strict=True
    ):
        if len(found) != needed:
            raise ValueError(f"{packed.pattern} of {packed.shape} needs {needed} bytes of {what}; found {len(found)}")
    if packed.pattern == DENSE:
        return _widened(packed.values, rows * k, packed).reshape(packed.shape)
    rule = _rule(packed.pattern)
    count = rows * k // rule.group
    kept = count * rule.keep
    values = _widened(packed.values, kept * rule.unit, packed).view(f"<u{packed.itemsize * rule.unit}")
    places = _unpacked_bits(packed.indices, kept, rule.place_bits).reshape(count, rule.keep)
    if places.size and places.max() >= rule.of:
        raise ValueError(f"an index of {places.max()} in groups of {rule.of}")
    units = np.zeros((count, rule.of), values.dtype)
    np.put_along_axis(units, places.astype(np.intp), values.reshape(places.shape), axis=1)
    return units.view(_CODES[packed.itemsize]).reshape(packed.shape)


def signed_nibbles(nibbles: Bytes) -> Bytes:
    """Four bits in the low half of each byte as eight-bit two's complement: width 4, whatever they mean."""
    return np.asarray((nibbles ^ np.uint8(8)) - np.uint8(8), np.uint8)


def split_nibbles(data: Bytes, count: int) -> Bytes:
    """`count` four-bit elements, two a byte, the low half first (as ONNX stores them), as `signed_nibbles`."""
    return signed_nibbles(_unpacked_bits(data, count, 4))


def joined_nibbles(codes: Bytes) -> Bytes:
    """The low halves of bytes, two a byte; the last half is 0 for an odd number."""
    return _packed_bits(codes & np.uint8(15), 4)


_NOTHING = np.empty(0, np.uint8)


def _codes(w: NDArray[Any]) -> NDArray[Any]:
    """The bits of w[rows, k] as unsigned integers."""
    if w.ndim != 2 or w.dtype.itemsize not in _CODES:
        raise ValueError(f"packing takes a matrix of 1, 2 or 4 byte elements; found {w.dtype} {w.shape}")
    return np.ascontiguousarray(w).view(_CODES[w.dtype.itemsize])


def _rule(pattern: str) -> Pattern:
    try:
        return parse_pattern(pattern)
    except GpusqError as error:
        raise ValueError(str(error)) from None


def _kept_places(units: NDArray[Any], rule: Pattern) -> NDArray[np.intp]:
    """The places [groups, keep] of the non-zero units[groups, of], rising; zeros of the lowest places fill up."""
    nonzero: NDArray[np.bool_] = units != 0
    if rule.of == 4 and rule.keep == 2:
        # four bytes of 0 or 1 as one number, times a number whose digits bring them side by side: no loop over rows
        sets = (nonzero.view("<u4")[:, 0] * np.uint32(0x01020408)) >> np.uint32(24)
        places: NDArray[np.intp] = _PAIRS_OF_FOUR[sets]
        return places
    first = np.argsort(~nonzero, axis=1, kind="stable")[:, : rule.keep]
    return np.sort(first, axis=1)


def _pairs_of_four() -> NDArray[np.intp]:
    """For each set of non-zero units among four, as four bits, the two places that are kept: a sort, made once."""
    sets = range(16)
    return np.array([sorted(sorted(range(4), key=lambda place: (not s >> place & 1, place))[:2]) for s in sets])


_PAIRS_OF_FOUR = _pairs_of_four()


def _packed_bits(numbers: NDArray[Any], bits: int) -> Bytes:
    """Unsigned numbers of a few bits each, end to end, the first one lowest."""
    flat = numbers.astype(np.uint8).reshape(-1)
    if 8 % bits == 0:  # several whole numbers a byte
        each = 8 // bits
        padded = np.concatenate([flat, np.zeros(-len(flat) % each, np.uint8)]).reshape(-1, each)
        packed = padded[:, 0].copy()
        for place in range(1, each):
            packed |= padded[:, place] << np.uint8(place * bits)
        return packed
    return np.packbits(np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")


def _unpacked_bits(packed: Bytes, count: int, bits: int) -> Bytes:
    if 8 % bits == 0:
        mask = np.uint8(2**bits - 1)
        return np.stack([packed >> np.uint8(at) & mask for at in range(0, 8, bits)], axis=1).reshape(-1)[:count]
    single = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(single, axis=1, bitorder="little").reshape(-1)


def _fits_four_bits(codes: NDArray[Any]) -> bool:
    return codes.itemsize == 1 and bool((signed_nibbles(codes & np.uint8(15)) == codes).all())


def _narrowed(codes: NDArray[Any], width: int) -> Bytes:
    flat = np.ascontiguousarray(codes).reshape(-1)
    return joined_nibbles(flat) if width == 4 else flat.view(np.uint8)


def _widened(values: Bytes, count: int, packed: Packed) -> NDArray[Any]:
    """`count` unsigned values of the element's size."""
    if packed.width != 4:
        return np.ascontiguousarray(values).view(_CODES[packed.itemsize])
    return split_nibbles(values, count)
