"""History comfort against scipy's filters over the joined sequence, and hand-worked drives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.metrics.comfort import LOWER_BOUNDS, UPPER_BOUNDS
from recogdrive.pdm.metrics.history_comfort import History, history_comfort
from recogdrive.pdm.state import REAR_AXLE_TO_CENTER_M, EgoState

savgol_filter = pytest.importorskip("scipy.signal").savgol_filter
COLUMNS = 20
LONGITUDINAL, LATERAL, JERK, LONGITUDINAL_JERK, YAW_ACCELERATION, YAW_RATE = range(6)
_history_comfort = jax.jit(history_comfort)


def states(**columns):
    """(1, 1, 41, 11) states, columns by lower-case name."""
    made = np.zeros((1, 1, 41, 11))
    for name, values in columns.items():
        made[0, 0, :, EgoState[name.upper()]] = values
    return made


def history(heading=(), acceleration_x=(), acceleration_y=(), samples=14):
    """Signals of the last `samples` columns; the columns before hold what must not matter."""
    signals = np.full((3, 1, COLUMNS), 77.0)
    for signal, values in zip(signals, (heading, acceleration_x, acceleration_y), strict=True):
        signal[0, COLUMNS - samples :] = values if len(np.shape(values)) == 0 or len(values) else 0.0
        signal[0, : COLUMNS - samples] = signal[0, COLUMNS - samples] if samples else 0.0
    return History(*signals, np.array([samples], np.int32))


def run(driven, past):
    with jax.enable_x64(True):
        found = _history_comfort(jnp.asarray(driven), History(*map(jnp.asarray, past)))
    return tuple(np.asarray(v)[0, 0] for v in found)


def with_scipy(driven, past):
    """Least and largest value of the six signals over history and drive, one after the other."""
    samples, s = int(past.samples[0]), driven[0, 0]
    start = COLUMNS - samples
    shift = REAR_AXLE_TO_CENTER_M * (s[:, EgoState.YAW_RATE] ** 2 + s[:, EgoState.YAW_ACCELERATION])
    x = np.concatenate([past.acceleration_x[0, start:], s[:, EgoState.ACCELERATION_X]])
    center_x = np.concatenate([past.acceleration_x[0, start:], s[:, EgoState.ACCELERATION_X] + shift])
    y = np.concatenate([past.acceleration_y[0, start:], s[:, EgoState.ACCELERATION_Y]])
    heading = np.unwrap(np.concatenate([past.heading[0, start:], s[:, EgoState.HEADING]]))
    longitudinal = savgol_filter(center_x, 8, 2).round(8)
    magnitude = savgol_filter(np.hypot(x, y), 8, 2).round(8)
    signals = [
        longitudinal,
        savgol_filter(y, 8, 2),
        savgol_filter(magnitude, 15, 2, deriv=1, delta=0.1),
        savgol_filter(longitudinal, 15, 2, deriv=1, delta=0.1),
        savgol_filter(heading, 5, 3, deriv=2, delta=0.1),
        savgol_filter(heading, 5, 2, deriv=1, delta=0.1),
    ]
    return np.min(signals, axis=1), np.max(signals, axis=1)


@pytest.mark.parametrize("samples", [0, 1, 7, 14, 15, 20])
def test_drives_agree_with_scipy_whatever_the_length_of_the_history(samples):
    rng = np.random.default_rng(samples)
    driven = states(
        heading=np.pi + rng.normal(0, 0.05, 41).cumsum(),
        acceleration_x=rng.normal(0, 2, 41),
        acceleration_y=rng.normal(0, 2, 41),
        yaw_rate=rng.normal(0, 0.5, 41),
        yaw_acceleration=rng.normal(0, 1, 41),
    )
    past = history(*rng.normal(0, 1, (3, samples)), samples=samples)
    ok, least, largest = run(driven, past)
    expected_least, expected_largest = with_scipy(driven, past)
    np.testing.assert_allclose(least, expected_least, rtol=0, atol=1e-7)
    np.testing.assert_allclose(largest, expected_largest, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(
        ok, (np.array(LOWER_BOUNDS) < expected_least) & (expected_largest < np.array(UPPER_BOUNDS))
    )


def test_a_steady_drive_is_comfortable():
    ok, least, largest = run(states(), history())
    assert ok.all() and (least == 0).all() and (largest == 0).all()


def test_a_smooth_plan_after_a_jolt_in_the_history_is_not():
    acceleration = np.zeros(14)
    acceleration[3:] = 2.0  # The plan keeps to it.
    driven = states(acceleration_x=2.0)
    ok, _, largest = run(driven, history(acceleration_x=acceleration))
    assert not ok[LONGITUDINAL_JERK] and largest[LONGITUDINAL_JERK] > 4.13
    ok, _, largest = run(driven, history(acceleration_x=2.0))
    assert ok.all() and largest[LONGITUDINAL_JERK] == pytest.approx(0, abs=1e-6)


def test_accelerations_are_those_of_the_centre_but_the_magnitudes_jerk_is_of_the_rear_axle():
    # 1.461 (1.0^2 + 0.5) = 2.1915 m/s^2 are added along the heading from now on, the history has none.
    driven = states(yaw_rate=1.0, yaw_acceleration=0.5)
    _, least, largest = run(driven, history())
    assert largest[LONGITUDINAL] == pytest.approx(2.1915, abs=0.4) and largest[LONGITUDINAL_JERK] > 1.0
    assert (least[JERK], largest[JERK]) == (0.0, 0.0)
    assert (least[LATERAL], largest[LATERAL]) == (0.0, 0.0)


def test_a_turn_across_half_a_turn_is_no_jump():
    way = np.pi - 0.3 + 0.02 * np.arange(55)
    wrapped = (way + np.pi) % (2 * np.pi) - np.pi
    ok, least, largest = run(states(heading=wrapped[14:]), history(heading=wrapped[:14]))
    assert ok.all()
    assert largest[YAW_RATE] == pytest.approx(0.2) and least[YAW_RATE] == pytest.approx(0.2)
    assert abs(largest[YAW_ACCELERATION]) < 1e-6


def test_float32_keeps_its_dtype():
    with jax.enable_x64(True):
        shapes = jax.ShapeDtypeStruct((2, 3, 41, 11), "float32")
        past = History(*[jax.ShapeDtypeStruct((2, COLUMNS), "float32")] * 3, jax.ShapeDtypeStruct((2,), "int32"))
        ok, least, _ = jax.eval_shape(history_comfort, shapes, past)
    assert ok.shape == least.shape == (2, 3, 6) and least.dtype == "float32"
