"""The car's box against hand-worked numbers and the geometry of the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive import geometry
from recogdrive.pdm import footprint

_centers = jax.jit(footprint.centers)
_corners = jax.jit(footprint.corners)


def test_the_centre_lies_ahead_of_the_rear_axle():
    poses = jnp.array([[10.0, 5.0, 0.0], [10.0, 5.0, np.pi / 2], [10.0, 5.0, np.pi]])
    np.testing.assert_allclose(_centers(poses), [[11.461, 5], [10, 6.461], [8.539, 5]], atol=1e-5)


def test_corners_of_a_car_facing_east_go_front_left_rear_left_rear_right_front_right():
    corners = _corners(jnp.zeros(3))
    np.testing.assert_allclose(
        corners, [[4.049, 1.1485], [-1.127, 1.1485], [-1.127, -1.1485], [4.049, -1.1485]], atol=1e-6
    )
    assert len(footprint.CORNER_NAMES) == len(corners)


def test_states_and_poses_give_the_same_box_and_it_is_that_of_the_package():
    states = np.random.default_rng(0).uniform(-9, 9, (3, 5, 11))
    with jax.enable_x64(True):
        centers, corners = np.asarray(_centers(jnp.asarray(states))), np.asarray(_corners(jnp.asarray(states)))
        np.testing.assert_allclose(_corners(jnp.asarray(states[..., :3])), corners, atol=1e-12)
    pose = np.concatenate([centers, states[..., 2:3]], axis=-1)
    expected = geometry.box_corners(pose, np.full((3, 5), 5.176), np.full((3, 5), 2.297))
    np.testing.assert_allclose(corners, expected, atol=1e-9)
    np.testing.assert_allclose(corners.mean(-2), centers, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_boxes_have_the_dtype_of_the_states(dtype):
    with jax.enable_x64(True):
        states = jax.ShapeDtypeStruct((2, 41, 11), dtype)
        centers, corners = jax.eval_shape(footprint.centers, states), jax.eval_shape(footprint.corners, states)
    assert (centers.dtype, centers.shape) == (dtype, (2, 41, 2))
    assert (corners.dtype, corners.shape) == (dtype, (2, 41, 4, 2))
