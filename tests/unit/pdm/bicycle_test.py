"""One step of the kinematic bicycle, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm import bicycle
from recogdrive.pdm.bicycle import Motion

_step = jax.jit(bicycle.step)


def moved(acceleration=0.0, steering_rate=0.0, **state):
    with jax.enable_x64(True):
        motion = Motion(*(jnp.asarray(float(state.get(name, 0.0))) for name in Motion._fields))
        return Motion(*map(float, _step(motion, jnp.asarray(acceleration), jnp.asarray(steering_rate))))


def test_a_coasting_car_moves_along_its_heading():
    motion = moved(x=1.0, y=2.0, heading=np.pi / 6, velocity_x=10.0)
    assert (motion.x, motion.y) == pytest.approx((1 + np.sqrt(3) / 2, 2.5))
    assert (motion.heading, motion.velocity_x) == pytest.approx((np.pi / 6, 10.0))


def test_a_third_of_an_acceleration_command_acts_at_once():
    motion = moved(acceleration=3.0, velocity_x=10.0)
    assert motion.acceleration_x == pytest.approx(1.0)
    assert motion.velocity_x == pytest.approx(10.1)


def test_an_acceleration_decays_towards_its_command_by_thirds():
    assert moved(acceleration=0.0, acceleration_x=3.0).acceleration_x == pytest.approx(2.0)


def test_the_position_moves_with_the_old_speed():
    assert moved(acceleration=30.0, velocity_x=2.0).x == pytest.approx(0.2)


def test_two_thirds_of_a_steering_rate_act_at_once():
    motion = moved(steering_rate=0.3, steering_angle=0.1)
    assert motion.steering_rate == pytest.approx(0.2)
    assert motion.steering_angle == pytest.approx(0.12)


def test_the_old_rate_of_steering_plays_no_part():
    with jax.enable_x64(True):
        still = Motion(*jnp.zeros(11))
        turning = still._replace(steering_rate=jnp.asarray(5.0))
        assert _step(still, jnp.asarray(0.0), jnp.asarray(0.3)) == _step(turning, jnp.asarray(0.0), jnp.asarray(0.3))


def test_the_heading_turns_with_the_old_wheels_and_the_yaw_rate_is_that_of_the_new():
    motion = moved(acceleration=3.0, steering_rate=1.5, velocity_x=10.0, steering_angle=0.2, yaw_rate=0.4)
    assert motion.heading == pytest.approx(0.1 * 10 * np.tan(0.2) / 3.089)
    assert motion.yaw_rate == pytest.approx(10.1 * np.tan(0.3) / 3.089)
    assert motion.yaw_acceleration == pytest.approx((motion.yaw_rate - 0.4) / 0.1)


@pytest.mark.parametrize("side", [1, -1])
def test_the_wheels_stop_at_60_degrees_and_the_rate_is_reported_as_if_they_did_not(side):
    motion = moved(steering_rate=side * 6.0, steering_angle=side * 1.0)
    assert motion.steering_angle == pytest.approx(side * np.pi / 3)
    assert motion.steering_rate == pytest.approx(side * 4.0)


def test_the_heading_wraps():
    motion = moved(heading=3.1, velocity_x=10.0, steering_angle=0.5)
    assert motion.heading == pytest.approx(3.1 + np.tan(0.5) / 3.089 - 2 * np.pi)


def test_sliding_ends_with_the_first_step():
    motion = moved(velocity_y=1.0, acceleration_y=2.0, velocity_x=5.0)
    assert motion.velocity_y == motion.acceleration_y == 0
    assert motion.y == 0


def test_braking_may_end_in_reverse():
    assert moved(acceleration=-6.0, velocity_x=0.1).velocity_x == pytest.approx(-0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_keeps_dtype_and_shape(dtype):
    with jax.enable_x64(True):
        component = jax.ShapeDtypeStruct((2, 3), dtype)
        stepped = jax.eval_shape(bicycle.step, Motion(*[component] * 11), component, component)
    assert {(str(values.dtype), values.shape) for values in stepped} == {(dtype, (2, 3))}
