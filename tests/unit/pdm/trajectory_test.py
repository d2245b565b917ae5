"""Trajectories to score: what is refused, frames, and interpolation to the simulator's clock."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive import geometry
from recogdrive.pdm import trajectory

_interpolate = jax.jit(trajectory.interpolate_candidate)
_absolute = jax.jit(trajectory.absolute_poses)


def straight(speed_mps=10.0):
    poses = np.zeros((8, 3))
    poses[:, 0] = speed_mps * 0.5 * np.arange(1, 9)
    return poses


def test_ten_poses_are_refused_with_the_horizon_that_they_would_mean():
    with pytest.raises(
        ValueError, match=r"\(4, 10, 3\): 10 poses, that is 5 s at 0.5 s or 4 s at 0.4 s; expected"
    ) as error:
        trajectory.check_trajectories(np.zeros((4, 10, 3)))
    assert "(..., 8, 3)" in str(error.value) and "up to 4 s" in str(error.value)


def test_forty_poses_are_recognised_as_the_fine_interval():
    with pytest.raises(ValueError, match="40 poses, that is 20 s at 0.5 s or 4 s at 0.1 s"):
        trajectory.check_trajectories(np.zeros((40, 3)))


@pytest.mark.parametrize("shape", [(3,), (8, 2), (2, 8, 4), (2, 0, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected \\(..., 8, 3\\)"):
        trajectory.check_trajectories(np.zeros(shape))


@pytest.mark.parametrize("values", [np.full((8, 3), "1.0"), np.zeros((8, 3), complex), np.zeros((8, 3), object)])
def test_what_is_no_real_number_is_refused(values):
    with pytest.raises(ValueError, match="not real numbers"):
        trajectory.check_trajectories(values)


def test_a_trajectory_with_a_nan_or_an_infinity_is_invalid_and_the_others_are_not():
    trajectories = np.zeros((2, 3, 8, 3), np.float32)
    trajectories[0, 1, 7, 2] = np.nan
    trajectories[1, 2, 0, 0] = -np.inf
    np.testing.assert_array_equal(
        trajectory.check_trajectories(trajectories), [[True, False, True], [True, True, False]]
    )


def test_one_trajectory_alone_gives_one_answer():
    assert trajectory.check_trajectories(straight()).shape == ()


def test_a_pose_ahead_of_a_car_facing_north():
    with jax.enable_x64(True):
        pose = _absolute(jnp.array([[4.0, 3.0, np.pi / 2]]), jnp.array([10.0, 20.0, np.pi / 2]))
    np.testing.assert_allclose(pose[0, :2], [7.0, 24.0], atol=1e-12)
    assert abs(float(pose[0, 2])) == pytest.approx(np.pi)


def test_absolute_poses_agree_with_the_geometry_of_the_package():
    rng = np.random.default_rng(0)
    poses, origin = rng.uniform(-9, 9, (5, 8, 3)), rng.uniform(-9, 9, 3)
    with jax.enable_x64(True):
        moved = _absolute(jnp.asarray(poses), jnp.asarray(origin))
    expected = geometry.from_frame(poses, origin)
    np.testing.assert_allclose(moved[..., :2], expected[..., :2], atol=1e-12)
    np.testing.assert_allclose(np.asarray(moved)[..., 2], expected[..., 2], atol=1e-12)


def test_a_straight_drive_of_10_mps_has_a_pose_every_metre():
    with jax.enable_x64(True):
        poses = _interpolate(jnp.asarray(straight()), jnp.zeros(3))
    np.testing.assert_allclose(poses[:, 0], np.arange(41.0), atol=1e-12)
    assert np.all(np.asarray(poses)[:, 1:] == 0)


def test_knots_and_the_initial_pose_pass_through():
    rng = np.random.default_rng(1)
    poses, initial = rng.uniform(-3, 3, (4, 8, 3)), rng.uniform(-3, 3, (4, 3))
    with jax.enable_x64(True):
        samples = np.asarray(_interpolate(jnp.asarray(poses), jnp.asarray(initial)))
    np.testing.assert_allclose(samples[:, 0], initial, atol=1e-12)
    np.testing.assert_allclose(samples[:, 5::5], poses, atol=1e-12)


def test_every_sample_agrees_with_numpy_interpolation_of_unwrapped_headings():
    rng = np.random.default_rng(2)
    poses, initial = rng.uniform(-3, 3, (8, 3)), rng.uniform(-3, 3, 3)
    with jax.enable_x64(True):
        samples = np.asarray(_interpolate(jnp.asarray(poses), jnp.asarray(initial)))
    knots = np.vstack([initial, poses])
    knots[:, 2] = np.unwrap(knots[:, 2])
    times = np.arange(41) / 10
    expected = np.stack([np.interp(times, np.arange(9) / 2, column) for column in knots.T], axis=-1)
    np.testing.assert_allclose(samples[:, :2], expected[:, :2], atol=1e-12)
    np.testing.assert_allclose(samples[:, 2], (expected[:, 2] + np.pi) % (2 * np.pi) - np.pi, atol=1e-12)


def test_a_heading_turns_the_shorter_way_across_half_a_turn():
    poses = straight()
    poses[0::2, 2], poses[1::2, 2] = -3.0, 3.0
    with jax.enable_x64(True):
        headings = np.asarray(_interpolate(jnp.asarray(poses), jnp.array([0.0, 0.0, 3.0])))[:, 2]
    assert np.abs(headings).min() >= 3.0 - 1e-12
    assert headings[1] == pytest.approx(3.0 + (2 * np.pi - 6) / 5)
    assert headings[3] == pytest.approx(3.0 + (2 * np.pi - 6) * 3 / 5 - 2 * np.pi)


def test_a_nan_stays_in_its_own_trajectory():
    poses = np.stack([straight(), straight(), straight()])
    poses[1, 3] = np.nan
    samples = np.asarray(_interpolate(jnp.asarray(poses), jnp.zeros((3, 3))))
    assert np.isfinite(samples[[0, 2]]).all() and np.isnan(samples[1]).any()


def test_the_normaliser_passes_its_first_41_poses_on_and_wraps_headings():
    poses = np.random.default_rng(3).uniform(-3, 3, (2, 51, 3)).astype(np.float32)
    poses[0, 4, 2] = 3.5
    kept = np.asarray(trajectory.interpolate_normaliser(jnp.asarray(poses)))
    expected = poses[:, :41].copy()
    expected[0, 4, 2] = 3.5 - 2 * np.pi
    np.testing.assert_allclose(kept, expected, rtol=0, atol=3e-7)
    assert np.array_equal(kept[1], expected[1])


def test_a_normaliser_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"\(41, 3\); expected \(..., 51, 3\)"):
        trajectory.interpolate_normaliser(jnp.zeros((41, 3)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_have_the_dtype_of_the_input(dtype):
    with jax.enable_x64(True):
        poses, initial = jax.ShapeDtypeStruct((2, 8, 3), dtype), jax.ShapeDtypeStruct((3,), dtype)
        assert jax.eval_shape(trajectory.absolute_poses, poses, initial).dtype == dtype
        assert jax.eval_shape(trajectory.interpolate_candidate, poses, initial).dtype == dtype
        normaliser = jax.ShapeDtypeStruct((51, 3), dtype)
        assert jax.eval_shape(trajectory.interpolate_normaliser, normaliser).dtype == dtype
