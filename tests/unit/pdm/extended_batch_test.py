"""What the extended score sees of a scene: tracks of 4 s, sampled history, padded lights."""

import dataclasses

import numpy as np
import pytest

from recogdrive.pdm.batch import ABSENT_M
from recogdrive.pdm.extended_batch import ExtendedSizes, as_observed_for_4_s, pad_extended
from recogdrive.pdm.map_index import build_map_index
from recogdrive.pdm.scene import ExtendedFacts


def facts(scene, sightings, times_us=(0, 500_000, 1_000_000, 1_500_000), states=None, lights=0):
    """Extended facts with one triangle a light."""
    outlines = np.arange(lights)[:, None, None] + np.array([[0.0, 0], [1, 0], [0, 1]])
    return ExtendedFacts(
        agent_sightings=np.array(sightings, np.int8),
        history_states=np.zeros((4, 11)) if states is None else states,
        history_times_us=np.array(times_us),
        light_vertices=outlines.reshape(-1, 2).astype(np.float32),
        light_offsets=3 * np.arange(lights + 1, dtype=np.int32),
        light_frames=np.full(lights, 7, np.int16),
        normaliser_poses_v2=scene.normaliser_poses + 1,
    )


@pytest.fixture
def extended(road_scene):
    """The road scene with extended facts."""

    def make(sightings=((0, 8), (2, 8)), **kwargs):
        return dataclasses.replace(road_scene, extended=facts(road_scene, sightings, **kwargs))

    return make


def padded(scene, sizes=None):
    return pad_extended([scene, scene], indices=[build_map_index(scene)] * 2, sizes=sizes)


def test_a_track_is_there_from_its_first_to_its_last_frame_of_4_s(extended):
    seen = as_observed_for_4_s(extended([(0, 8), (2, 6)]))
    assert np.flatnonzero(seen.agent_valid[:, 0]).tolist() == list(range(41))
    assert np.flatnonzero(seen.agent_valid[:, 1]).tolist() == list(range(10, 31))
    np.testing.assert_array_equal(seen.agent_poses[20, 0], extended().agent_poses[20, 0])
    assert not seen.agent_poses[~seen.agent_valid].any()


def test_a_track_of_one_frame_stands_at_its_place_for_4_s(extended):
    scene = extended([(3, 3), (-1, -1)])
    seen = as_observed_for_4_s(scene)
    assert seen.agent_valid[:41, 0].all() and not seen.agent_valid[41:].any() and not seen.agent_valid[:, 1].any()
    np.testing.assert_array_equal(seen.agent_poses[:41, 0], np.tile(scene.agent_poses[15, 0], (41, 1)))
    assert seen.agent_poses.dtype == np.float32


def test_the_normaliser_is_that_of_navsim_v2(extended):
    batch = padded(extended())
    np.testing.assert_array_equal(batch.scenes.normaliser_poses[0], extended().normaliser_poses + 1)


@pytest.mark.parametrize("end_us, samples", [(1_500_000, 14), (1_499_600, 14), (1_500_001, 15), (1_650_000, 16)])
def test_the_history_is_sampled_until_its_clock_ends_but_for_the_last_time(extended, end_us, samples):
    states = np.zeros((4, 11))
    states[:, 5] = [0.0, 0.5, 1.0, 0.001 * end_us / 1000]
    states[:, 2] = [3.0, 3.1, -3.1, -3.0]
    batch = padded(extended(times_us=(0, 500_000, 1_000_000, end_us), states=states))
    assert batch.history.samples.tolist() == [samples, samples]
    acceleration = batch.history.acceleration_x[0]
    np.testing.assert_allclose(acceleration[-samples:], 0.1 * np.arange(samples), atol=1e-9)
    assert not acceleration[:-samples].any()
    # Half way from 3.1 to -3.1 the short way round lies half a turn, not 0.
    assert abs(batch.history.heading[0, 16 - samples + 7]) > 3.1


def test_lights_are_filled_up_with_their_first_vertex_and_padding_ones_are_out_of_reach(extended):
    lights = padded(extended(lights=2)).lights
    assert lights.vertices.shape == (2, 4, 32, 2) and lights.frames[0].tolist() == [7, 7, 0, 0]
    np.testing.assert_array_equal(lights.vertices[0, 1, :4], [[1, 1], [2, 1], [1, 2], [1, 1]])
    assert (lights.vertices[0, 2:] == ABSENT_M).all()


def test_sizes_hold_what_either_holds(extended):
    few, many = extended(lights=2), extended(lights=9)
    sizes = [ExtendedSizes.fitting([scene], [build_map_index(scene)]) for scene in (few, many)]
    both = sizes[0].union(sizes[1])
    assert both.lights.lights == 16 and both.history == 16 and both.scenes == sizes[0].scenes
    assert padded(few, both).lights.frames.shape == (2, 16)


def test_too_small_sizes_and_no_scenes_are_refused(extended):
    scene = extended(lights=9)
    sizes = ExtendedSizes.fitting([scene], [build_map_index(scene)])
    with pytest.raises(ValueError, match="cannot hold these lights"):
        padded(scene, sizes._replace(lights=sizes.lights._replace(lights=4)))
    with pytest.raises(ValueError, match="2 columns cannot hold a history of 14 samples"):
        padded(scene, sizes._replace(history=2))
    with pytest.raises(ValueError, match="no scenes"):
        pad_extended([], indices=[])
