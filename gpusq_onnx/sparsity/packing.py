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
    def bits(self) -> float:
        """Bits a weight, indices included."""
        return bits_a_weight(self.pattern, self.width)


def bits_a_weight(pattern: str, width: int) -> float:
    """What one weight takes.

    >>> [bits_a_weight("2:4", 16), bits_a_weight("2:4", 8), bits_a_weight("4:8pair", 4), bits_a_weight("dense", 4)]
    [9.0, 5.0, 2.5, 4.0]
    """
    if pattern == DENSE:
        return float(width)
    rule = parse_pattern(pattern)
    return rule.density * width + rule.metadata_bits


def pack(w: NDArray[Any]) -> Packed | None:
    """The smallest form of w[rows, k] (any type of 1, 2 or 4 bytes) that is smaller than w itself; None without one.

    Raises:
        ValueError: not 2-D, or elements of another size.
    """
    if w.ndim != 2 or w.dtype.itemsize not in _CODES:
        raise ValueError(f"packing takes a matrix of 1, 2 or 4 byte elements; found {w.dtype} {w.shape}")
    codes = np.ascontiguousarray(w).view(_CODES[w.dtype.itemsize])
    shape, size = (codes.shape[0], codes.shape[1]), w.dtype.itemsize
    width = 4 if _fits_four_bits(codes) else 8 * codes.itemsize
    known = patterns_of(codes) if codes.size else ()
    best = min(known, key=lambda rule: bits_a_weight(rule.name, width), default=None)
    if best is None:
        return None if width == 8 * size else Packed(DENSE, width, shape, size, _narrowed(codes, width), _NOTHING)
    groups = codes.reshape(-1, best.of, best.unit)
    places = _kept_places(groups, best)
    kept = np.take_along_axis(groups, places[:, :, None], axis=1)
    return Packed(best.name, width, shape, size, _narrowed(kept, width), _packed_bits(places, best.place_bits))


def unpack(packed: Packed) -> NDArray[Any]:
    """The matrix, bit for bit, as unsigned integers of its element's size.

    Raises:
        ValueError: values or indices are not what pattern, width and shape ask for.
    """
    rows, k = packed.shape
    if packed.pattern == DENSE:
        return _widened(packed.values, rows * k, packed).reshape(packed.shape)
    rule = _rule(packed)
    if k % rule.group or min(rows, k) < 0:
        raise ValueError(f"{packed.pattern} needs k % {rule.group} == 0; found {packed.shape}")
    count = rows * k // rule.group
    needed = (count * rule.keep * rule.place_bits + 7) // 8
    if len(packed.indices) != needed:
        raise ValueError(f"{count} groups need {needed} bytes of indices; found {len(packed.indices)}")
    kept = count * rule.keep
    values = _widened(packed.values, kept * rule.unit, packed).reshape(count, rule.keep, rule.unit)
    places = _unpacked_bits(packed.indices, kept, rule.place_bits).reshape(count, rule.keep)
    if places.size and places.max() >= rule.of:
        raise ValueError(f"an index of {places.max()} in groups of {rule.of}")
    groups = np.zeros((count, rule.of, rule.unit), values.dtype)
    np.put_along_axis(groups, places.astype(np.intp)[:, :, None], values, axis=1)
    return groups.reshape(packed.shape)


_NOTHING = np.empty(0, np.uint8)


def _rule(packed: Packed) -> Pattern:
    try:
        return parse_pattern(packed.pattern)
    except Exception as error:
        raise ValueError(str(error)) from None


def _kept_places(groups: NDArray[Any], rule: Pattern) -> NDArray[np.intp]:
    """The places [groups, keep] of the non-zero units, rising; zeros of the lowest places fill up."""
    nonzero: NDArray[np.bool_] = (groups != 0).any(axis=2)
    if rule.of == 4 and rule.keep == 2:
        sets = np.packbits(nonzero, axis=1, bitorder="little")[:, 0]
        return _PAIRS_OF_FOUR[sets]
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
    return codes.itemsize == 1 and bool((_signed(codes & np.uint8(15)) == codes).all())


def _signed(nibbles: Bytes) -> Bytes:
    """Four-bit two's complement as eight-bit."""
    return np.asarray((nibbles ^ np.uint8(8)) - np.uint8(8), np.uint8)


def _narrowed(codes: NDArray[Any], width: int) -> Bytes:
    flat = np.ascontiguousarray(codes).reshape(-1)
    return _packed_bits(flat & np.uint8(15), 4) if width == 4 else flat.view(np.uint8)


def _widened(values: Bytes, count: int, packed: Packed) -> NDArray[Any]:
    """`count` unsigned values of the element's size."""
    needed = (count * packed.width + 7) // 8
    if len(values) != needed:
        raise ValueError(f"{count} values of {packed.width} bits need {needed} bytes; found {len(values)}")
    if packed.width != 4:
        return np.ascontiguousarray(values).view(_CODES[packed.itemsize])
    return _signed(_unpacked_bits(values, count, 4))
