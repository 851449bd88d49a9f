"""Packing is exact, takes the space that docs/method.md states, and refuses what does not fit together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpusq_onnx.sparsity import patterns
from gpusq_onnx.sparsity.packing import Packed, bits_a_weight, pack, unpack
from gpusq_onnx.sparsity.patterns import parse_pattern

DTYPES = {"int8": 8, "uint8": 8, "float16": 16, "float32": 32, "int32": 32}
PATTERNS = {name: pattern.group for name, pattern in patterns.PATTERNS.items()}


@st.composite
def sparse(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A pattern and a matrix of any bits that follows it."""
    pattern, dtype = draw(st.sampled_from(sorted(PATTERNS))), draw(st.sampled_from(sorted(DTYPES)))
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    shape = (rows, groups * PATTERNS[pattern])
    codes = draw(hnp.arrays(f"u{np.dtype(dtype).itemsize}", shape))
    score = draw(hnp.arrays("f4", shape, elements=st.floats(0, 1, width=32)))
    return pattern, np.where(parse_pattern(pattern).mask(score), codes, 0).astype(codes.dtype).view(dtype)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=150)
@given(sparse())
def test_what_was_packed_comes_back_bit_for_bit(found: tuple[str, np.ndarray]) -> None:
    pattern, w = found
    packed = pack(w)
    assert packed is not None
    assert same_bits(unpack(packed), w)
    assert packed.bits <= bits_a_weight(pattern, packed.width)
    size = packed.values.nbytes + packed.indices.nbytes
    assert w.size * packed.bits / 8 <= size <= w.size * packed.bits / 8 + 2
    assert size <= w.nbytes


@settings(max_examples=150)
@given(hnp.arrays(st.sampled_from(["i1", "u2", "f4"]), hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_any_matrix_is_packed_exactly_or_not_at_all(w: np.ndarray) -> None:
    packed = pack(w)
    if packed is not None:
        assert same_bits(unpack(packed), w)
        assert packed.bits < 8 * w.itemsize


@settings(max_examples=60)
@given(hnp.arrays("i1", (3, 8), elements=st.integers(-8, 7)))
def test_four_bit_values_in_int8_are_narrow(w: np.ndarray) -> None:
    packed = pack(w)
    assert packed is not None and packed.width == 4
    assert same_bits(unpack(packed), w)


@pytest.mark.parametrize(
    ("dtype", "pattern", "four", "bits"),
    [
        ("float16", "2:4", False, 9),
        ("int8", "2:4", False, 5),
        ("int8", "4:8pair", True, 2.5),
        ("int8", "2:4", True, 3),
        ("float32", "2:4", False, 17),
        ("float16", "4:8pair", False, 8.5),
    ],
)
def test_the_sizes_are_those_of_the_method(dtype: str, pattern: str, four: bool, bits: float) -> None:
    random = np.random.default_rng(0)
    w = random.integers(1, 7 if four else 127, (64, 128))
    w = np.where(parse_pattern(pattern).mask(random.random(w.shape)), w, 0).astype(dtype)
    packed = pack(w)
    assert packed is not None
    assert (packed.pattern, packed.bits) == (pattern, bits)
    assert (packed.values.nbytes + packed.indices.nbytes) * 8 == w.size * bits
    assert packed.values.nbytes * 8 == w.size * packed.width // 2


def test_a_negative_zero_is_a_value() -> None:
    w = np.zeros((1, 8), np.float16)
    w[0, [0, 1, 2, 4, 5]] = -0.0
    assert pack(w) is None
    w[0, 2] = 0
    packed = pack(w)
    assert packed is not None and same_bits(unpack(packed), w)


def test_a_dense_matrix_of_wide_values_is_not_packed() -> None:
    assert pack(np.arange(1, 65, dtype=np.int8).reshape(8, 8) + 8) is None
    assert pack(np.zeros((0, 8), np.float32)) is None
    narrow = pack(np.arange(-8, 7, dtype=np.int8).reshape(3, 5))
    assert narrow is not None and (narrow.pattern, narrow.bits, len(narrow.values)) == ("dense", 4, 8)


def test_the_layout_is_the_one_that_is_written_down() -> None:
    packed = pack(np.array([[0, 3, 0, 9], [17, 0, 0, 0]], np.uint8))
    assert packed is not None
    assert packed.values.tolist() == [3, 9, 17, 0]
    assert packed.indices.tolist() == [(1 | 3 << 2) | (0 | 1 << 2) << 4]
    pairs = pack(np.array([[0, 0, -8, 0, 0, 0, 1, 2]], np.int8))
    assert pairs is not None
    assert (pairs.pattern, pairs.width) == ("4:8pair", 4)
    assert pairs.values.tolist() == [0x08, 0x21]
    assert pairs.indices.tolist() == [1 | 3 << 2]


@pytest.mark.parametrize("w", [np.zeros(8, np.int8), np.zeros((2, 8), np.float64)])
def test_what_cannot_be_packed_is_refused(w: np.ndarray) -> None:
    with pytest.raises(ValueError, match="1, 2 or 4 byte"):
        pack(w)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    packed = pack(np.array([[0, 3, 0, 9, 0, 0, 1, 1]], np.uint8) * 16)
    assert isinstance(packed, Packed)
    for broken in (
        replace(packed, values=packed.values[:-1]),
        replace(packed, indices=np.append(packed.indices, np.uint8(0))),
        replace(packed, shape=(1, 6)),
        replace(packed, shape=(3, 8)),
    ):
        with pytest.raises(ValueError, match="found"):
            unpack(broken)
