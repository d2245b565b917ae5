"""Comfort: its filters against SciPy or explicit fits, its checks against hand-worked drives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.metrics import comfort as comfort_module
from recogdrive.pdm.metrics.comfort import CHECKS, LOWER_BOUNDS, UPPER_BOUNDS, comfort, savitzky_golay
from recogdrive.pdm.state import EgoState

FILTERS = [(41, 2, 0), (41, 2, 1), (8, 2, 0), (5, 3, 2), (5, 2, 1)]
_comfort = jax.jit(comfort)


def check(states, dtype="float64"):
    """Maps each check to whether it passes, its least and its largest value."""
    with jax.enable_x64(dtype == "float64"):
        results = [np.asarray(values) for values in _comfort(jnp.asarray(states, dtype))]
    return {name: tuple(values[..., i] for values in results) for i, name in enumerate(CHECKS)}


def drive(**columns):
    states = np.zeros((41, 11))
    for name, values in columns.items():
        states[:, EgoState[name.upper()]] = values
    return states


def explicit_filter(signal, window, order, derivative):
    """Fits a polynomial to every window and evaluates it, one sample at a time."""
    half, size = window // 2, len(signal)
    filtered = np.empty(size)
    for i in range(size):
        first, place = i - (window - 1) // 2, (window - 1) / 2
        if i < half:
            first, place = 0, i
        elif i >= size - half:
            first, place = size - window, i - (size - window)
        times = 0.1 * (np.arange(window) - place)
        fit = np.polynomial.Polynomial.fit(times, signal[first : first + window], order).convert()
        filtered[i] = fit.deriv(derivative)(0.0) if derivative else fit(0.0)
    return filtered


@pytest.mark.parametrize("window, order, derivative", FILTERS)
def test_filters_are_polynomial_fits(window, order, derivative):
    signal = np.random.default_rng(0).normal(size=41)
    expected = explicit_filter(signal, window, order, derivative)
    np.testing.assert_allclose(savitzky_golay(window, order, derivative) @ signal, expected, atol=1e-9)


@pytest.mark.parametrize("window, order, derivative", FILTERS)
def test_filters_are_those_of_scipy(window, order, derivative):
    signal = pytest.importorskip("scipy.signal")
    identity = np.eye(41)
    expected = signal.savgol_filter(identity, window, order, deriv=derivative, delta=0.1, axis=0, mode="interp")
    np.testing.assert_allclose(savitzky_golay(window, order, derivative), expected, atol=1e-10)


def test_an_even_window_weighs_the_samples_around_half_a_step_later():
    row = savitzky_golay(8, 2, 0)[20]
    np.testing.assert_allclose(row[17:25], np.array([-3, 3, 7, 9, 9, 7, 3, -3]) / 32, atol=1e-12)
    assert np.count_nonzero(row) == 8


@pytest.mark.parametrize("window, order", [(3, 3), (43, 2)])
def test_a_window_that_cannot_be_fitted_is_refused(window, order):
    with pytest.raises(ValueError, match=f"window={window} must exceed order={order}.* num_samples=41"):
        savitzky_golay(window, order, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_standing_car_is_comfortable(dtype):
    for ok, least, largest in check(drive(), dtype).values():
        assert ok and least == largest == 0


def test_a_steady_acceleration_shows_as_itself_and_without_jerk():
    result = check(drive(acceleration_x=1.5))
    assert result["longitudinal_acceleration"] == (True, 1.5, 1.5)
    assert result["jerk"] == (True, 0, 0)
    assert result["longitudinal_jerk"] == (True, 0, 0)


@pytest.mark.parametrize(
    "acceleration, passes", [(2.40, False), (2.3999, True), (-4.05, False), (-4.0499, True), (2.400000001, False)]
)
def test_an_acceleration_on_its_bound_fails(acceleration, passes):
    assert check(drive(acceleration_x=acceleration))["longitudinal_acceleration"][0] == passes


def test_values_are_rounded_to_eight_decimals_before_they_are_compared():
    just_below = np.nextafter(2.4, 0)
    assert just_below < 2.4
    assert not check(drive(acceleration_x=just_below))["longitudinal_acceleration"][0]
    assert check(drive(acceleration_x=2.4 - 2e-8))["longitudinal_acceleration"][0]


def test_a_rising_acceleration_has_its_slope_as_jerk():
    result = check(drive(acceleration_x=-2 + 1.0 * 0.1 * np.arange(41)))
    ok, least, largest = result["longitudinal_jerk"]
    # The even window looks half a step ahead between its ends but not there, which bends the line by a twentieth.
    assert ok and least == pytest.approx(0.95, abs=0.01) and largest == pytest.approx(1.05, abs=0.01)


def test_braking_turning_into_acceleration_has_opposite_jerks_of_magnitude_and_of_direction():
    acceleration = np.linspace(-3, 0, 41)
    result = check(drive(acceleration_x=acceleration))
    np.testing.assert_allclose(result["jerk"][1:], -np.array(result["longitudinal_jerk"][1:])[::-1], atol=1e-7)
    assert result["longitudinal_jerk"][1] > 0 > result["jerk"][2]


def test_lateral_acceleration_counts_through_its_first_sample_alone_with_a_fifth():
    states = drive()
    states[0, EgoState.ACCELERATION_Y] = 24.0
    ok, _, largest = check(states)["lateral_acceleration"]
    assert ok and largest == pytest.approx(24.0 * 0.1994, rel=1e-3)
    states[0, EgoState.ACCELERATION_Y] = -25.0
    assert not check(states)["lateral_acceleration"][0]


@pytest.mark.parametrize("dtype, exact", [("float64", 1e-7), ("float32", 1e-4)])
def test_a_steady_turn_across_half_a_turn_has_its_yaw_rate(dtype, exact):
    heading = 2.9 + 0.08 * np.arange(41)
    result = check(drive(heading=np.arctan2(np.sin(heading), np.cos(heading))), dtype)
    for extreme in result["yaw_rate"][1:]:
        assert extreme == pytest.approx(0.8, abs=exact)
    for extreme in result["yaw_acceleration"][1:]:
        assert extreme == pytest.approx(0.0, abs=10 * exact)
    assert result["yaw_rate"][0] and result["yaw_acceleration"][0]


def test_a_turn_of_one_radian_per_second_is_too_fast_either_way():
    for side in (1, -1):
        assert not check(drive(heading=side * 0.1 * np.arange(41)))["yaw_rate"][0]


def test_a_yaw_acceleration_is_the_second_derivative_of_the_heading():
    times = 0.1 * np.arange(41) - 2
    ok, least, largest = check(drive(heading=times**2))["yaw_acceleration"]
    assert not ok and least == pytest.approx(2.0, abs=1e-6) and largest == pytest.approx(2.0, abs=1e-6)


def test_all_signals_agree_with_explicit_fits():
    rng = np.random.default_rng(4)
    ax, ay, heading = rng.normal(0, 3, 41), np.r_[5.0, np.zeros(40)], np.cumsum(rng.normal(0, 0.1, 41))
    result = check(drive(acceleration_x=ax, acceleration_y=ay, heading=heading))
    signals = {
        "longitudinal_acceleration": explicit_filter(ax, 41, 2, 0),
        "lateral_acceleration": explicit_filter(ay, 41, 2, 0),
        "jerk": explicit_filter(explicit_filter(np.hypot(ax, ay), 8, 2, 0), 41, 2, 1),
        "longitudinal_jerk": explicit_filter(explicit_filter(ax, 8, 2, 0), 41, 2, 1),
        "yaw_acceleration": explicit_filter(heading, 5, 3, 2),
        "yaw_rate": explicit_filter(heading, 5, 2, 1),
    }
    for lower, upper, (name, signal) in zip(LOWER_BOUNDS, UPPER_BOUNDS, signals.items(), strict=True):
        ok, least, largest = result[name]
        assert (least, largest) == pytest.approx((signal.min(), signal.max()), abs=1e-7)
        assert ok == (lower < signal.min() and signal.max() < upper)


def test_a_nan_fails_its_own_drive_alone():
    states = np.stack([drive(acceleration_x=1.0)] * 3)
    states[1, 4, EgoState.ACCELERATION_X] = np.nan
    np.testing.assert_array_equal(check(states)["longitudinal_acceleration"][0], [True, False, True])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes_have_the_dtype_of_the_states(dtype):
    with jax.enable_x64(True):
        ok, least, largest = jax.eval_shape(comfort_module.comfort, jax.ShapeDtypeStruct((2, 3, 41, 11), dtype))
    assert ok.dtype == bool and least.dtype == largest.dtype == dtype
    assert ok.shape == least.shape == largest.shape == (2, 3, 6)
