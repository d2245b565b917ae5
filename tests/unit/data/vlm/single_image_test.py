"""A scene made of an image and an ego status."""

import numpy as np
import pytest

from recogdrive.data.samples import status_feature
from recogdrive.data.vlm.single_image import GivenStatus


def test_a_status_becomes_the_planners_inputs():
    history = ((-3.0, 0.1, 0.0), (-2.0, 0.1, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    scene = GivenStatus((4.0, 0.5), (1.0, -0.5), "right", history).scene("front.jpg")
    assert status_feature(scene).tolist() == [0, 0, 1, 0, 4.0, 0.5, 1.0, -0.5]
    np.testing.assert_array_equal(scene.ego.poses, history)
    assert dict(scene.cameras) == {"cam_f0": "front.jpg"} and scene.future is None


def test_without_history_it_drove_straight_at_its_velocity():
    scene = GivenStatus((4.0, 0.0)).scene("front.jpg")
    np.testing.assert_array_equal(scene.ego.poses[:, 0], [-6.0, -4.0, -2.0, 0.0])
    assert not scene.ego.poses[:, 1:].any()


def test_tokens_tell_images_and_statuses_apart():
    tokens = {GivenStatus((v, 0.0)).scene(image).token for v in (1.0, 2.0) for image in ("a.jpg", "b.jpg")}
    assert len(tokens) == 4 and {len(token) for token in tokens} == {16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "rihgt"}, "command='rihgt' does not exist.*right"),
        ({"velocity": (1.0,)}, r"velocity=\(1.0,\) must be finite numbers of shape \(2,\)"),
        ({"acceleration": (1.0, float("nan"))}, "acceleration"),
        ({"history": ((0.0, 0.0, 0.0),)}, "history"),
        ({"history": ((0.0, 0.0, 0.0),) * 3 + ((1.0, 0.0, 0.0),)}, "the last: it is"),
    ],
)
def test_a_status_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GivenStatus(**arguments)
