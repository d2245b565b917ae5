"""Scenes of different sizes in one batch: what padding looks like, and which sizes are refused."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from recogdrive.data.types import AgentClass
from recogdrive.pdm.batch import ABSENT_M, Sizes, pad_scenes
from recogdrive.pdm.cache import PdmCache, PdmCacheWriter, pdm_stream
from recogdrive.pdm.map_index import build_map_index


@pytest.fixture
def empty_scene(road_scene):
    """The road without tracks and with a centre line of two points."""
    return dataclasses.replace(
        road_scene,
        agent_poses=road_scene.agent_poses[:, :0],
        agent_valid=road_scene.agent_valid[:, :0],
        agent_sizes=road_scene.agent_sizes[:0],
        agent_speeds=road_scene.agent_speeds[:0],
        agent_types=road_scene.agent_types[:0],
        centerline=road_scene.centerline[::3],
    )


@pytest.fixture
def sizes_of():
    def build(*scenes, **other):
        return Sizes.exact(scenes, [build_map_index(scene) for scene in scenes])._replace(**other)

    return build


def test_absent_and_padding_tracks_lie_out_of_reach(road_scene, empty_scene, sizes_of):
    agents = pad_scenes([road_scene, empty_scene], sizes=sizes_of(road_scene, agents=4)).agents
    assert agents.boxes.x.shape == (51, 2, 4)
    # The cone is seen from 1 s on.
    assert agents.boxes.x[[9, 10], 0].tolist() == [
        [pytest.approx(25.4, abs=1e-5), ABSENT_M, ABSENT_M, ABSENT_M],
        [26, 30, ABSENT_M, ABSENT_M],
    ]
    assert agents.boxes.y[[9, 10], 0].tolist() == [[0, ABSENT_M, ABSENT_M, ABSENT_M], [0, -3, ABSENT_M, ABSENT_M]]
    assert (agents.boxes.x[:, 1] == ABSENT_M).all()


def test_sines_and_cosines_are_taken_in_float64(road_scene):
    boxes = pad_scenes([road_scene], dtype=np.float32).agents.boxes
    assert boxes.cos[20, 0, 1] == np.float32(np.cos(np.float64(np.float32(0.5))))
    assert boxes.sin[20, 0, 1] == np.float32(np.sin(np.float64(np.float32(0.5))))


def test_boxes_have_half_sizes(road_scene):
    agents = pad_scenes([road_scene]).agents
    assert agents.half_length[0, :2].tolist() == [2.25, np.float64(np.float32(0.4)) / 2]
    assert agents.half_width[0, :2].tolist() == [np.float64(np.float32(1.9)) / 2, np.float64(np.float32(0.3)) / 2]


@pytest.mark.parametrize(
    "kind, speed, stopped, static",
    [
        (AgentClass.VEHICLE, 0.05, True, False),
        (AgentClass.PEDESTRIAN, np.nextafter(0.05, 1), False, False),
        (AgentClass.BICYCLE, 3.0, False, False),
        (AgentClass.TRAFFIC_CONE, 3.0, True, True),
        (AgentClass.BARRIER, 0.0, True, True),
        (AgentClass.CZONE_SIGN, 9.0, True, True),
        (AgentClass.GENERIC_OBJECT, 9.0, True, True),
    ],
)
def test_slow_tracks_and_static_objects_are_stopped(road_scene, kind, speed, stopped, static):
    scene = dataclasses.replace(
        road_scene, agent_types=np.array([kind, 0], np.int8), agent_speeds=np.array([speed, 9.0])
    )
    # The speed is compared in float64 whatever scoring computes in.
    agents = pad_scenes([scene], dtype=np.float32).agents
    assert agents.stopped[0, :2].tolist() == [stopped, False]
    assert agents.static[0, :2].tolist() == [static, False]


def test_a_centre_line_is_filled_with_its_last_point(road_scene, empty_scene, sizes_of):
    batch = pad_scenes([road_scene, empty_scene], sizes=sizes_of(road_scene, centerline=6))
    assert batch.centerline_points.tolist() == [4, 2]
    assert batch.centerline[0].tolist() == [[-50, 0], [50, 0], [50, 0], [150, 0], [150, 0], [150, 0]]
    assert batch.centerline[1].tolist() == [[-50, 0]] + [[150, 0]] * 5


def test_padding_cells_list_no_edges(road_scene, sizes_of):
    exact = sizes_of(road_scene)
    maps = pad_scenes([road_scene], sizes=exact._replace(cells=exact.cells + 5, edges=exact.edges + 3, words=2)).maps
    assert maps.starts.shape == (1, exact.cells + 6)
    assert (maps.starts[0, exact.cells :] == exact.edges).all()
    assert (maps.whole[0, exact.cells :] == 0).all()
    assert (maps.whole[..., 1] == 0).all() and (maps.drivable_bits[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_have_the_dtype_asked_for(road_scene, dtype):
    batch = pad_scenes([road_scene], dtype=dtype)
    numbers = [batch.ego_state, batch.centerline, batch.normaliser_poses, batch.maps.edges, batch.maps.cells_per_m]
    numbers += [*batch.agents.boxes, batch.agents.half_length, batch.normaliser_progress_m, batch.normaliser_factor]
    assert {array.dtype for array in numbers} == {np.dtype(dtype)}


def test_the_normaliser_is_not_scored_yet(road_scene):
    batch = pad_scenes([road_scene])
    assert np.isnan(batch.normaliser_progress_m).all() and np.isnan(batch.normaliser_factor).all()


def test_sizes_fit_exactly_or_with_room_to_the_next_power_of_two(road_scene, empty_scene):
    scenes = [road_scene, empty_scene]
    indices = [build_map_index(scene) for scene in scenes]
    exact = Sizes.exact(scenes, indices)
    assert exact == Sizes(agents=2, centerline=4, cells=101 * 17, edges=len(indices[0].bits), words=1)
    fitting = Sizes.fitting(scenes, indices)
    assert all(size & (size - 1) == 0 for size in fitting)
    assert all(have >= want for have, want in zip(fitting, exact, strict=True))


def test_a_scene_without_tracks_and_polygons_has_sizes_of_one(empty_scene):
    scene = dataclasses.replace(
        empty_scene,
        vertices=np.zeros((0, 2), np.float32),
        ring_offsets=np.zeros(1, np.int32),
        polygon_offsets=np.zeros(1, np.int32),
        polygon_layers=np.zeros(0, np.int8),
        polygon_on_route=np.zeros(0, bool),
    )
    exact = Sizes.exact([scene], [build_map_index(scene)])
    assert exact == Sizes(agents=1, centerline=2, cells=1, edges=1, words=1)
    assert pad_scenes([scene], sizes=exact).maps.edges.shape == (1, 1, 4)


def test_the_union_of_sizes_holds_both():
    assert Sizes(1, 9, 3, 4, 5).union(Sizes(5, 4, 3, 2, 1)) == Sizes(5, 9, 3, 4, 5)


@pytest.mark.parametrize("name", Sizes._fields)
def test_sizes_that_are_too_small_are_refused(road_scene, sizes_of, name):
    exact = sizes_of(road_scene)
    pad_scenes([road_scene], sizes=exact)
    small = exact._replace(**{name: getattr(exact, name) - 1})
    with pytest.raises(
        ValueError, match=rf"{name}={getattr(exact, name) - 1}.* cannot hold .*{name}={getattr(exact, name)}"
    ):
        pad_scenes([road_scene], sizes=small)


def test_no_scenes_are_refused():
    with pytest.raises(ValueError, match="no scenes"):
        pad_scenes([])


def test_a_batch_knows_its_scenes_and_its_memory(road_scene, empty_scene, sizes_of):
    batch = pad_scenes([road_scene, empty_scene], dtype=np.float32, sizes=sizes_of(road_scene))
    assert batch.num_scenes == 2
    assert batch.num_bytes > 2 * 51 * 2 * 4 * 4 + batch.maps.whole.nbytes
    more = batch._replace(centerline_points=np.zeros(1000, np.int32))
    assert more.num_bytes == batch.num_bytes + 998 * 4  # Every array counts.
    assert pad_scenes([road_scene], sizes=sizes_of(road_scene)).num_bytes < 2 * batch.num_bytes


def test_a_container_is_read_as_padded_batches(tmp_path, road_scene, empty_scene, sizes_of):
    scenes = [dataclasses.replace(s, token=f"scene{i}") for i, s in enumerate([road_scene, empty_scene] * 2)]
    with PdmCacheWriter(tmp_path, origin={"source": "test"}) as writer:
        assert all(writer.add(scene) for scene in scenes)
    collate = partial(pad_scenes, sizes=sizes_of(*scenes, agents=7))
    batches = list(pdm_stream(PdmCache(tmp_path), 2, collate=collate, seed=None, num_epochs=1))
    assert len(batches) == 2
    for batch, expected in zip(batches, (collate(scenes[:2]), collate(scenes[2:])), strict=True):
        assert batch.agents.stopped.shape == (2, 7)
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
