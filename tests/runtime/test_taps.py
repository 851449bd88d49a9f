import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusq_onnx.runtime.compare.taps import RunningTap, Tap, TapDifference, first_departure


def measured(a: np.ndarray, b: np.ndarray, *, batch: int = 4, strict: bool = False) -> TapDifference:
    tap = RunningTap(Tap("t", strict=strict))
    for start in range(0, len(a), batch):
        tap.update(a[start : start + batch], b[start : start + batch])
    return tap.result()


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=40)
@given(st.integers(1, 9), st.floats(0.001, 2), st.integers(0, 99))
def test_the_distance_is_that_of_all_data_at_once_whatever_the_batch(batch: int, noise: float, seed: int) -> None:
    a = values(9, 5, 6, seed=seed)
    b = a + np.float32(noise) * values(9, 5, 6, seed=seed + 100)
    expected = np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(a.astype(np.float64))
    found = measured(a, b, batch=batch)
    assert found.relative == pytest.approx(expected, rel=1e-6)
    assert found.up_to_scale is not None
    assert found.up_to_scale <= found.relative + 1e-9


@pytest.mark.parametrize("shape", [(64, 6), (4, 10, 6), (2, 3, 16, 4), (3, 8, 9, 4)])
def test_channels_that_were_rescaled_on_purpose_are_no_distance(shape: tuple[int, ...]) -> None:
    a = values(*shape)
    factors = np.random.default_rng(1).uniform(0.1, 10, shape[1:-2] + (1,) * (len(shape) > 2) + shape[-1:])
    found = measured(a, (a * factors).astype(np.float32))
    assert found.relative is not None and found.relative > 0.5
    assert found.up_to_scale == pytest.approx(0, abs=1e-5)
    assert not found.leaves(0.01)
    assert measured(a, (a * factors).astype(np.float32), strict=True).leaves(0.01)


def test_noise_is_not_explained_by_scale() -> None:
    a = values(64, 6)
    found = measured(a, a + 0.5 * values(64, 6, seed=1))
    assert found.up_to_scale == pytest.approx(found.relative, rel=0.2)
    assert found.leaves(0.3)


def test_a_sign_is_no_scale() -> None:
    a = values(64, 6)
    assert measured(a, -a).up_to_scale == pytest.approx(1)


def test_few_values_have_no_factors_to_hide_behind() -> None:
    a = values(1, 6)
    found = measured(a, 3 * a)
    assert found.up_to_scale is None
    assert found.relative == pytest.approx(2)
    assert found.leaves(0.1)


def test_zeros_shapes_and_values_that_are_not_finite() -> None:
    zeros, a = np.zeros((64, 2), np.float32), values(64, 2)
    assert measured(zeros, zeros).relative == 0.0
    nothing = measured(zeros, a)
    assert nothing.relative is None and nothing.leaves(1e9)
    assert measured(a, a[:, :1]).shape_mismatches == 16
    assert measured(a, a[:, :1]).leaves(1e9)
    broken = a.copy()
    broken[3, 1] = np.nan
    assert (measured(a, broken).nonfinite, measured(a, broken).relative) == (1, 0.0)
    assert measured(a, broken).leaves(1e9)
    assert not measured(broken, broken).leaves(0)


def test_channels_that_follow_the_data_get_no_factor() -> None:
    tap = RunningTap(Tap("t"))
    for width in (3, 4):
        tap.update(values(64, width), 2 * values(64, width))
    assert (tap.result().up_to_scale, tap.result().relative) == (None, 1.0)


def test_the_first_departure_is_the_first_in_order() -> None:
    taps = [TapDifference(name, distance, None, 0, 0) for name, distance in zip("abc", (0.1, 0.3, 0.2), strict=True)]
    first = first_departure(taps, 0.15)
    assert first is not None and first.name == "b"
    assert first_departure(taps, 0.3) is None
