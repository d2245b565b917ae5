"""Two-frame extended comfort against scipy's filters, and hand-worked pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.metrics.extended_comfort import MOST, extended_comfort
from recogdrive.pdm.state import EgoState

savgol_filter = pytest.importorskip("scipy.signal").savgol_filter
ACCELERATION, JERK, YAW_RATE, YAW_ACCELERATION = range(4)
_compare = jax.jit(extended_comfort, static_argnames="steps")


def states(acceleration=0.0, heading=0.0):
    made = np.zeros((1, 41, 11))
    made[0, :, EgoState.ACCELERATION_X], made[0, :, EgoState.HEADING] = acceleration, heading
    return made


def run(current, previous, steps=5):
    with jax.enable_x64(True):
        return tuple(np.asarray(v)[0] for v in _compare(jnp.asarray(current), jnp.asarray(previous), steps=steps))


def features(part):
    acceleration = savgol_filter(np.hypot(*part[:, [EgoState.ACCELERATION_X, EgoState.ACCELERATION_Y]].T), 8, 2)
    acceleration, heading = acceleration.round(8), np.unwrap(part[:, EgoState.HEADING])
    return [
        acceleration,
        savgol_filter(acceleration, 15, 2, deriv=1, delta=0.1),
        savgol_filter(heading, 5, 2, deriv=1, delta=0.1),
        savgol_filter(heading, 5, 2, deriv=2, delta=0.1),
    ]


@pytest.mark.parametrize("steps", [1, 5, 6])
def test_pairs_agree_with_scipy(steps):
    rng = np.random.default_rng(steps)
    current, previous = rng.normal(0, 0.5, (2, 1, 41, 11))
    alike, roots = run(current, previous, steps)
    difference = np.array(features(current[0, : 41 - steps])) - features(previous[0, steps:])
    expected = np.sqrt((difference**2).mean(axis=1))
    np.testing.assert_allclose(roots, expected, rtol=1e-6)
    np.testing.assert_array_equal(alike, expected <= MOST)


def test_the_same_drive_seen_half_a_second_later_is_alike():
    time = 0.1 * np.arange(46)
    acceleration, heading = np.abs(np.sin(time)), 0.3 * np.sin(time) + np.pi
    alike, roots = run(states(acceleration[5:], heading[5:]), states(acceleration[:41], heading[:41]))
    assert alike.all() and roots.max() < 0.02
    alike, _ = run(states(acceleration[:41], heading[:41]), states(acceleration[:41], heading[:41]))
    assert not alike.all()


@pytest.mark.parametrize("other, alike", [(0.69, True), (0.71, False)])
def test_a_constant_difference_is_its_own_root(other, alike):
    # A constant acceleration filters to itself: the root is the difference.
    found, roots = run(states(other), states(0.0))
    assert roots[ACCELERATION] == pytest.approx(other) and found[ACCELERATION] == alike
    assert found[[JERK, YAW_RATE, YAW_ACCELERATION]].all()


def test_a_constant_turn_differs_by_its_yaw_rate():
    found, roots = run(states(heading=0.011 * np.arange(41)), states())
    assert roots[YAW_RATE] == pytest.approx(0.11) and not found[YAW_RATE] and found[YAW_ACCELERATION]


def test_the_sign_of_an_acceleration_does_not_count():
    assert run(states(-3.0), states(3.0))[0].all()


@pytest.mark.parametrize("steps", [0, 27])
def test_frames_that_hardly_overlap_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps} must be between 1 and 26"):
        extended_comfort(states(), states(), steps)
