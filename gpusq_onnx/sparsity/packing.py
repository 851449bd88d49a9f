"""Weights of a sparse pattern in the space that the pattern needs: kept values, and where they were.

    2:4        of each 4 elements, 2 are kept
    4:8pair    of each 8 elements in 4 pairs, 2 pairs are kept
    dense      all are kept; narrow values only

Of each four units (elements, or pairs) two are kept, whose places are two 2-bit indices, the lower first. A group with
fewer non-zero units keeps zeros, those of the lowest places. Values are 4, 8, 16 or 32 bits wide; 4-bit ones are the
integers -8 to 7, in two's complement.

    bits a weight = values kept · width + 4, over the group:  FP16 9, INT8 5, 4-bit 3 (2:4); 4-bit 2.5 (4:8pair)

Bit by bit: an element counts as zero only when all its bits are zero, so -0.0 is kept. Little endian within a byte: the
first nibble, or the first group's four index bits, are the low ones.

Source: GPUSQ-ViT (arXiv 2305.10727), section 3.1. Limits: k must be a multiple of 4, of 8 for pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

UNITS = {"2:4": 1, "4:8pair": 2}
"""Elements that are kept or dropped together, by pattern."""

_CODES: dict[int, np.dtype[np.unsignedinteger[Any]]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}


def _places() -> Bytes:
    """For each set of non-zero units, as four bits, the places that are kept: the lower one, plus 4 times the other."""
    kept = np.zeros(16, np.uint8)
    for mask in range(16):
        order = sorted(range(4), key=lambda place: (not mask >> place & 1, place))
        low, high = sorted(order[:2])
        kept[mask] = low | high << 2
    return kept


_PLACES = _places()


@dataclass(frozen=True)
class Packed:
    """A packed matrix.

    Attributes:
        pattern: "2:4", "4:8pair" or "dense".
        width: bits of a value.
        shape: [rows, k].
        itemsize: bytes of an element as it was.
        values: the kept values in order, uint8.
        indices: the kept places, two groups a byte, uint8; empty for "dense".
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
    return float(width) if pattern == "dense" else width / 2 + 4 / (4 * UNITS[pattern])


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
    known = [pattern for pattern in ("4:8pair", "2:4") if _holds(codes, pattern)]
    if not known and width == 8 * codes.itemsize:
        return None
    pattern = known[0] if known else "dense"
    if pattern == "dense":
        return Packed(pattern, width, shape, size, _narrowed(codes, width), np.empty(0, np.uint8))
    groups = codes.reshape(-1, 4, UNITS[pattern])
    places = _PLACES[_nonzero_units(codes, UNITS[pattern])]
    kept = np.take_along_axis(groups, _split(places)[:, :, None], axis=1)
    return Packed(pattern, width, shape, size, _narrowed(kept, width), _nibbles(places))


def unpack(packed: Packed) -> NDArray[Any]:
    """The matrix, bit for bit, as unsigned integers of its element's size.

    Raises:
        ValueError: values or indices are not what pattern, width and shape ask for.
    """
    rows, k = packed.shape
    size = rows * k
    if packed.pattern == "dense":
        return _widened(packed.values, size, packed).reshape(packed.shape)
    unit = UNITS[packed.pattern]
    if k % (4 * unit) or min(rows, k) < 0:
        raise ValueError(f"{packed.pattern} needs k % {4 * unit} == 0; found {packed.shape}")
    count = size // (4 * unit)
    if len(packed.indices) != (count + 1) // 2:
        raise ValueError(f"{count} groups need {(count + 1) // 2} bytes of indices; found {len(packed.indices)}")
    values = _widened(packed.values, size // 2, packed).reshape(count, 2, unit)
    places = np.stack([packed.indices & 15, packed.indices >> 4], axis=1).reshape(-1)[:count]
    groups = np.zeros((count, 4, unit), values.dtype)
    np.put_along_axis(groups, _split(places)[:, :, None], values, axis=1)
    return groups.reshape(packed.shape)


def _holds(codes: NDArray[Any], pattern: str) -> bool:
    unit = UNITS[pattern]
    if not codes.size or codes.shape[1] % (4 * unit):
        return False
    few = codes[:_GLANCE]  # most dense matrices are recognised by their first rows
    return not any(_TOO_MANY[_nonzero_units(part, unit)].any() for part in (few, codes))


_TOO_MANY = np.array([mask.bit_count() > 2 for mask in range(16)])
_GLANCE = 8


def _nonzero_units(codes: NDArray[Any], unit: int) -> Bytes:
    """For each group of four units the set of those that are not all zero, as four bits."""
    nonzero = (codes != 0).view(np.uint8)
    if unit == 2:
        nonzero = nonzero[:, 0::2] | nonzero[:, 1::2]
    found: Bytes = nonzero[:, 0::4].copy()
    for place in range(1, 4):
        found |= nonzero[:, place::4] << np.uint8(place)
    return found.reshape(-1)


def _split(places: Bytes) -> NDArray[np.intp]:
    """The two places [groups, 2] of each index nibble."""
    return np.stack([places & 3, places >> 2], axis=1).astype(np.intp)


def _nibbles(values: Bytes) -> Bytes:
    """Four-bit values, two a byte, the first one low; an odd last one is alone."""
    even = np.append(values, np.uint8(0)) if len(values) % 2 else values
    return np.asarray(even[0::2] | even[1::2] << np.uint8(4), np.uint8)


def _fits_four_bits(codes: NDArray[Any]) -> bool:
    return codes.itemsize == 1 and bool((_signed(codes & np.uint8(15)) == codes).all())


def _signed(nibbles: Bytes) -> Bytes:
    """Four-bit two's complement as eight-bit."""
    return np.asarray((nibbles ^ np.uint8(8)) - np.uint8(8), np.uint8)


def _narrowed(codes: NDArray[Any], width: int) -> Bytes:
    flat = np.ascontiguousarray(codes).reshape(-1)
    return _nibbles(flat & np.uint8(15)) if width == 4 else flat.view(np.uint8)


def _widened(values: Bytes, count: int, packed: Packed) -> NDArray[Any]:
    """`count` unsigned values of the element's size."""
    needed = (count * packed.width + 7) // 8
    if len(values) != needed:
        raise ValueError(f"{count} values of {packed.width} bits need {needed} bytes; found {len(values)}")
    if packed.width != 4:
        return np.ascontiguousarray(values).view(_CODES[packed.itemsize])
    return _signed(np.stack([values & np.uint8(15), values >> np.uint8(4)], axis=1).reshape(-1)[:count])
