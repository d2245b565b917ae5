"""Tests of pdm/observation.py."""

import numpy as np
import pytest

from recogdrive.data.types import AgentClass, Box, Detections
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.observation import observe
from recogdrive.pdm.reference_scenes import ReferenceScenes


def _frame(**tracks) -> Detections:
    """Detections of tracks given as (x, y, heading), optionally followed by (vx, vy) and the length."""
    boxes = np.zeros((len(tracks), len(Box)))
    velocity = np.zeros((len(tracks), 2))
    boxes[:, Box.LENGTH : Box.HEADING] = [4.0, 2.0, 1.5]
    for row, values in enumerate(tracks.values()):
        boxes[row, [Box.X, Box.Y, Box.HEADING]] = values[:3]
        velocity[row] = values[3:5] or [0.0, 0.0]
        if len(values) > 5:
            boxes[row, Box.LENGTH] = values[5]
    return Detections(boxes, np.full(len(tracks), AgentClass.VEHICLE, dtype=np.int8), velocity, tuple(tracks))


_EMPTY = _frame()


def test_a_track_moves_linearly_between_frames():
    seen = observe([_frame(a=(0, 0, 0)), _frame(a=(5, 10, 0.5))] + [_frame(a=(5, 10, 0.5))] * 9)
    np.testing.assert_allclose(seen.agent_poses[:7, 0, 0], [0, 1, 2, 3, 4, 5, 5], atol=1e-12)
    np.testing.assert_allclose(seen.agent_poses[:6, 0, 1], [0, 2, 4, 6, 8, 10], atol=1e-12)
    np.testing.assert_allclose(seen.agent_poses[:6, 0, 2], [0, 0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-12)
    assert seen.agent_valid.all()


def test_there_are_always_51_steps_and_columns_follow_first_appearance():
    seen = observe([_frame(b=(0, 0, 0), a=(1, 0, 0)), _frame(c=(2, 0, 0), a=(1, 0, 0), b=(0, 0, 0))])
    assert seen.agent_poses.shape == (51, 3, 3)
    assert seen.track_tokens == ("b", "a", "c")


def test_a_gap_within_a_track_is_bridged():
    frames = [_frame(a=(0, 0, 0)), _EMPTY, _EMPTY, _frame(a=(15, 0, 0))] + [_EMPTY] * 7
    seen = observe(frames)
    np.testing.assert_allclose(seen.agent_poses[:16, 0, 0], np.arange(16.0), atol=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(seen.agent_valid[:, 0]), np.arange(16))


def test_a_track_is_absent_before_its_first_and_after_its_last_frame():
    frames = [_EMPTY, _EMPTY, _frame(a=(1, 2, 0)), _frame(a=(1, 2, 0))] + [_EMPTY] * 7
    seen = observe(frames)
    np.testing.assert_array_equal(np.flatnonzero(seen.agent_valid[:, 0]), np.arange(10, 16))
    assert not seen.agent_poses[:10].any()
    assert not seen.agent_poses[16:].any()


def test_a_track_of_a_single_frame_stands_at_all_51_steps():
    frames = [_EMPTY] * 4 + [_frame(a=(7, 8, 1.0, 3.0, 4.0))] + [_EMPTY] * 6
    seen = observe(frames)
    assert seen.agent_valid.all()
    np.testing.assert_array_equal(seen.agent_poses[:, 0], np.tile([7.0, 8.0, 1.0], (51, 1)))
    assert seen.agent_speeds.tolist() == [5.0]


def test_headings_turn_the_short_way_round_and_stay_wrapped():
    seen = observe([_frame(a=(0, 0, 3.1)), _frame(a=(0, 0, -3.1))])
    turn = 2 * np.pi - 6.2
    np.testing.assert_allclose(seen.agent_poses[1, 0, 2], 3.1 + turn / 5, atol=1e-12)
    np.testing.assert_allclose(seen.agent_poses[4, 0, 2], -3.1 - turn / 5, atol=1e-12)


def test_headings_are_unwrapped_over_a_gap():
    seen = observe([_frame(a=(0, 0, 3.0)), _EMPTY, _frame(a=(0, 0, -3.0)), _frame(a=(0, 0, -2.0))])
    np.testing.assert_allclose(np.abs(seen.agent_poses[5, 0, 2]), np.pi, atol=1e-12)
    np.testing.assert_allclose(seen.agent_poses[15, 0, 2], -2.0, atol=1e-12)


def test_size_and_speed_are_those_of_the_first_frame():
    frames = [_EMPTY, _frame(a=(0, 0, 0, 0.03, 0.04, 5.0)), _frame(a=(1, 0, 0, 9.0, 0.0, 6.0))]
    seen = observe(frames)
    assert seen.agent_sizes.tolist() == [[5.0, 2.0]]
    np.testing.assert_allclose(seen.agent_speeds, [0.05])


def test_class_is_that_of_the_first_frame():
    first, second = _frame(a=(0, 0, 0)), _frame(a=(0, 0, 0))
    first.classes[:] = AgentClass.BARRIER
    assert observe([first, second]).agent_types.tolist() == [AgentClass.BARRIER]


def test_frames_that_end_early_leave_later_steps_without_tracks():
    seen = observe([_frame(a=(x, 0, 0)) for x in range(9)])
    assert seen.agent_valid[:41].all()
    assert not seen.agent_valid[41:].any()


def test_a_track_of_the_only_frame_stands_at_all_steps():
    assert observe([_frame(a=(1, 1, 1))]).agent_valid.all()


def test_no_objects_at_all_give_empty_arrays():
    seen = observe([_EMPTY] * 11)
    assert seen.agent_poses.shape == (51, 0, 3)
    assert seen.agent_sizes.shape == (0, 2)
    assert seen.track_tokens == ()


@pytest.mark.parametrize("count", [0, 12])
def test_a_wrong_number_of_frames_is_refused(count):
    with pytest.raises(SceneError, match=f"{count} frames.*1 to 11"):
        observe([_EMPTY] * count)


def test_a_track_twice_in_a_frame_is_refused():
    twice = _frame(a=(0, 0, 0), b=(1, 0, 0))
    twice = Detections(twice.boxes, twice.classes, twice.velocity, ("a", "a"))
    with pytest.raises(SceneError, match="frame 1 .*'a' more than once"):
        observe([_EMPTY, twice])


def _reference_detections(state: np.ndarray, valid: np.ndarray, types: np.ndarray) -> list[Detections]:
    """2 Hz arrays of a reference file as detections, a track's token its column."""
    frames = []
    for row, seen in zip(state.astype(np.float64), valid, strict=True):
        boxes = np.zeros((int(seen.sum()), len(Box)))
        boxes[:, [Box.X, Box.Y, Box.HEADING, Box.LENGTH, Box.WIDTH]] = row[seen, :5]
        frames.append(Detections(boxes, types[seen], row[seen, 5:], tuple(map(str, np.flatnonzero(seen)))))
    return frames


def test_real_scenes_are_observed_as_the_reference_does(golden_pdm):
    scenes = ReferenceScenes(golden_pdm)
    compared = 0
    for index in range(len(scenes)):
        with np.load(scenes.path(index)) as arrays:
            if "agents_2hz_state" not in arrays:
                continue
            frames = _reference_detections(arrays["agents_2hz_state"], arrays["agents_2hz_valid"], arrays["agent_type"])
        seen, scene = observe(frames), scenes[index]
        assert seen.track_tokens == tuple(map(str, range(len(scene.agent_types)))), scene.token
        np.testing.assert_array_equal(seen.agent_valid, scene.agent_valid, err_msg=scene.token)
        # Stored as float32: half a unit in the last place, however far away; and a rest for the reference's rounding.
        np.testing.assert_allclose(seen.agent_poses, scene.agent_poses, rtol=2**-24, atol=1e-6, err_msg=scene.token)
        np.testing.assert_array_equal(seen.agent_sizes, scene.agent_sizes)
        np.testing.assert_array_equal(seen.agent_types, scene.agent_types)
        np.testing.assert_allclose(seen.agent_speeds, scene.agent_speeds, rtol=0, atol=1e-9)
        compared += 1
    if not compared:
        pytest.skip(f"no scene in {golden_pdm} has 2 Hz detections")
