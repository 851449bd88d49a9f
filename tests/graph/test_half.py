"""What FP16 makes of numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpusq_onnx.graph.fp16.numeric import LARGEST, SMALLEST_NORMAL, scale_to_half, to_half, weight_range

FLOATS = hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=False))


@given(FLOATS)
def test_finite_values_stay_finite_and_zeros_zero(values: np.ndarray) -> None:
    half = to_half(values)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(np.isinf(half), np.isinf(values))
    assert not np.any(half[values == 0])
    inside = np.abs(values) <= LARGEST
    np.testing.assert_array_equal(half[inside], values[inside].astype(np.float16))


@given(hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(2.0**-30, 1000, width=32)))
def test_scales_are_normal_numbers(scales: np.ndarray) -> None:
    half = scale_to_half(scales)
    assert np.all(half.astype(np.float32) >= SMALLEST_NORMAL)
    normal = scales >= SMALLEST_NORMAL
    np.testing.assert_allclose(half[normal].astype(np.float64), scales[normal], rtol=2.0**-11)


@pytest.mark.parametrize(
    ("values", "largest", "error", "overflows", "vanishes"),
    [
        ([1.0, -70000.0], 70000, 0, True, False),
        ([65504.0, -np.inf], 65504, 0, False, False),
        ([np.nan, 3.0], 3, 0, False, False),
        ([1.0, 1e-9, 0.0, 0.0], 1, 0, False, False),
        ([3e-8, 4e-8, 0.0], 4e-8, 0.7, False, False),
        ([1e-12], 1e-12, 1, False, True),
        ([0.0], 0, 0, False, False),
        ([], 0, 0, False, False),
    ],
)
def test_ranges(values: list[float], largest: float, error: float, overflows: bool, vanishes: bool) -> None:
    found = weight_range(np.array(values, np.float32))
    assert found.largest == pytest.approx(largest)
    assert found.error == pytest.approx(error, abs=0.02)
    assert (found.overflows, found.vanishes) == (overflows, vanishes)


def test_the_smallest_number_that_is_not_lost() -> None:
    around = np.float32([2.0**-25, np.nextafter(np.float32(2.0**-25), np.float32(1))])
    assert [weight_range(np.array([x])).vanishes for x in around] == [not bool(np.float16(x)) for x in around] == [1, 0]


def test_an_additive_mask_is_negative() -> None:
    assert weight_range(np.float32([0, -1e9])).mask
    assert not weight_range(np.float32([0, 1e9])).mask
    assert not weight_range(np.float32([0, -5])).mask
