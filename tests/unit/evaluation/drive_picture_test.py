"""The picture of one scene: trajectories on the ground of the front image, and the VLM's words."""

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.synthetic.camera import Pinhole
from recogdrive.evaluation.drive_picture import drive_figure, ground_pixels

CAMERA = Pinhole(width=200, height=100, fov_deg=90.0, forward_m=1.0, height_m=2.0, horizon=0.5)
"""Focal length 100 pixels; a ground point 20 m from the eye lies 10 pixels below the horizon, at row 50."""


def straight(speed_mps, offset_m=0.0):
    times = 0.5 * np.arange(1, 9)
    return np.stack([speed_mps * times, np.full(8, offset_m), np.zeros(8)], axis=-1)


def gids(figure):
    return {artist.get_gid() for artist in figure.findobj() if artist.get_gid()}


def test_ground_points_lie_where_a_pinhole_sees_them():
    way, poses = ground_pixels(straight(10.5, offset_m=4.0), CAMERA)
    # The fourth pose, 21 m ahead, is 20 m before the eye: 4 m to the left are 20 pixels.
    np.testing.assert_allclose(poses[3], [80.0, 60.0])
    assert np.nanmin(way[:, 1]) == pytest.approx(50 + 100 * 2 / 41)


def test_what_is_too_near_or_behind_is_a_gap_and_not_joined():
    there_and_back = straight(4.0)
    there_and_back[3:5, 0] = -10.0
    way, poses = ground_pixels(there_and_back, CAMERA)
    assert np.isnan(poses[[0, 3, 4]]).all() and np.isfinite(poses[[1, 2, 5, 6, 7]]).all()
    inside = np.isfinite(way[:, 0]).astype(int)
    assert (np.diff(inside) == 1).sum() == 2, "the way comes into view twice"


def figure(scene, camera, answer="Straight on.", trajectories=None):
    image = Image.new("RGB", (200, 100), (90, 120, 90))
    trajectories = {"human": straight(9.0), "vlm_text": straight(8.0)} if trajectories is None else trajectories
    return drive_figure(scene, image, trajectories, camera=camera, title="a scene", answer=answer)


def test_every_trajectory_is_in_both_views(straight_scene):
    found = gids(figure(straight_scene, CAMERA))
    assert {f"{view}:{name}" for view in ("front", "trajectory") for name in ("human", "vlm_text")} <= found


def test_without_calibration_the_front_image_stays_as_it_is(straight_scene):
    made = figure(straight_scene, None)
    assert not {gid for gid in gids(made) if gid.startswith("front:")}
    assert "calibration is not known" in made.axes[0].get_title()


def test_an_invalid_trajectory_is_in_neither_view(straight_scene):
    made = figure(straight_scene, CAMERA, trajectories={"vlm_text": np.full((8, 3), np.nan)})
    assert not {gid for gid in gids(made) if gid.endswith("vlm_text")}


def test_words_that_the_font_lacks_are_marked(straight_scene):
    made = figure(straight_scene, CAMERA, answer="$x$ ゾ é\n")
    (text,) = [t.get_text() for t in made.findobj(lambda artist: artist.get_gid() == "drive:answer")]
    assert text == "VLM: $x$ \N{REPLACEMENT CHARACTER} é\N{REPLACEMENT CHARACTER}"
