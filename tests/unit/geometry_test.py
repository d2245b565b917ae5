"""Frames, angles and boxes against hand-worked numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recogdrive import geometry

coordinate = st.floats(-1e4, 1e4)
angle = st.floats(-10.0, 10.0)


@pytest.mark.parametrize(
    "given_rad, wrapped", [(0.0, 0.0), (3.5, 3.5 - 2 * np.pi), (-4.0, 2 * np.pi - 4.0), (7.0, 7.0 - 2 * np.pi)]
)
def test_angles_wrap_into_one_turn(given_rad, wrapped):
    assert geometry.wrap_angle(given_rad) == pytest.approx(wrapped, abs=1e-12)


def test_rotation_is_counter_clockwise():
    np.testing.assert_allclose(
        geometry.rotate(np.array([[1.0, 0.0], [0.0, 2.0]]), np.pi / 2), [[0, 1], [-2, 0]], atol=1e-12
    )


def test_a_pose_ahead_and_to_the_left_in_the_frame_of_a_turned_origin():
    origin = np.array([10.0, 20.0, np.pi / 2])  # Faces north, so north is ahead and west is left.
    pose = np.array([7.0, 24.0, np.pi])
    np.testing.assert_allclose(geometry.to_frame(pose, origin), [4.0, 3.0, np.pi / 2], atol=1e-12)


def test_the_origin_is_zero_in_its_own_frame_even_at_utm_distances():
    origin = np.array([331_234.567, 4_689_012.345, -2.2])
    assert np.abs(geometry.to_frame(origin, origin)).max() == 0.0


@given(coordinate, coordinate, angle, coordinate, coordinate, angle)
def test_into_a_frame_and_back_is_the_same_pose(x, y, heading, ox, oy, oh):
    pose, origin = np.array([x, y, heading]), np.array([ox, oy, oh])
    back = geometry.from_frame(geometry.to_frame(pose, origin), origin)
    np.testing.assert_allclose(back[:2], pose[:2], atol=1e-8)
    assert abs(geometry.wrap_angle(back[2] - heading)) < 1e-9


def test_points_move_like_the_positions_of_poses():
    origin = np.array([3e5, 4.7e6, 0.7])
    poses = np.array([[3e5 + 4, 4.7e6 - 2, 0.0], [3e5 - 1, 4.7e6 + 9, 0.0]])
    np.testing.assert_allclose(geometry.points_to_frame(poses[:, :2], origin), geometry.to_frame(poses, origin)[:, :2])


def test_corners_go_front_left_rear_left_rear_right_front_right():
    corners = geometry.box_corners(np.array([10.0, 5.0, np.pi / 2]), 4.0, 2.0)
    np.testing.assert_allclose(corners, [[9, 7], [9, 3], [11, 3], [11, 7]], atol=1e-12)


def test_a_box_contains_its_border_and_not_what_lies_beyond():
    centers = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, np.pi / 2]])
    inside = geometry.boxes_contain(np.array([2.0, 0.0]), centers, np.array([4.0, 4.0]), np.array([2.0, 2.0]))
    assert inside.tolist() == [True, False]


def test_yaw_of_a_level_quaternion_is_its_rotation_about_z():
    for yaw in (-3.0, -0.5, 0.0, 1.2, 3.1):
        q = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
        assert geometry.yaw_of_quaternion(q) == pytest.approx(yaw, abs=1e-12)


def test_yaw_keeps_pyquaternions_sign_on_a_slope_and_ignores_scale():
    w, x, y, z = q = np.array([0.9, 0.05, 0.1, 0.4])
    n2 = (q**2).sum()
    expected = np.arctan2(2 * (w * z - x * y) / n2, 1 - 2 * (y**2 + z**2) / n2)
    assert geometry.yaw_of_quaternion(3.0 * q) == pytest.approx(expected, abs=1e-12)
    usual = np.arctan2(2 * (w * z + x * y) / n2, 1 - 2 * (y**2 + z**2) / n2)
    assert abs(expected - usual) > 1e-2
