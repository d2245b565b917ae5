"""Tests of pdm/shard.py: scenes that share their map, facts kept beside them, what is refused."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from recogdrive.pdm import cache_format
from recogdrive.pdm.cache import PdmCache, PdmCacheWriter
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import ExtendedFacts
from recogdrive.pdm.shard import ShardWriter, open_shard
from recogdrive.pdm.validation import validate

PLACE = np.array([585_086.964, 4_477_449.41])


@pytest.fixture
def drive(road_scene):
    """Three scenes of one drive, 5 m apart, with the vertices of their map in global coordinates."""
    rng = np.random.default_rng(0)
    world = road_scene.vertices.astype(np.float64) + PLACE + rng.normal(scale=0.01, size=road_scene.vertices.shape)
    made = []
    for k in range(3):
        origin = np.array([PLACE[0] + 5.0 * k, PLACE[1], 0.0])
        vertices = (world - origin[:2]).astype(np.float32)
        made.append((dataclasses.replace(road_scene, token=f"s{k}", origin=origin, vertices=vertices), world))
    return made


@pytest.fixture
def extended(road_scene):
    """The road scene with everything the extended score needs."""
    facts = ExtendedFacts(
        agent_sightings=np.array([[0, 8], [2, 2]], dtype=np.int8),
        history_states=np.arange(44.0).reshape(4, 11),
        history_times_us=np.array([1, 2, 3, 4], dtype=np.int64),
        light_vertices=np.array([[0, 0], [5, 0], [5, 5], [0, 0], [1, 0], [1, 1]], dtype=np.float32),
        light_offsets=np.array([0, 3, 6], dtype=np.int32),
        light_frames=np.array([1, 511], dtype=np.int16),
        normaliser_poses_v2=road_scene.normaliser_poses + np.float32(1),
    )
    return dataclasses.replace(road_scene, extended=facts)


def test_scenes_of_one_drive_share_their_polygons(tmp_path, drive, assert_same):
    with PdmCacheWriter(tmp_path, origin={}) as writer:
        assert all(writer.add(scene, world) for scene, world in drive)
    cache = PdmCache(tmp_path)
    for stored, (scene, _) in zip(cache, drive, strict=True):
        assert_same(stored, scene)
    table = open_shard(tmp_path / "scenes-00000.arrow").read_tables()[True]
    assert len(table.layers) == 3 and table.vertices.dtype == np.float64
    np.testing.assert_array_equal(table.vertices, drive[0][1])


def test_scenes_with_and_without_a_place_in_the_world_lie_side_by_side(tmp_path, drive, road_scene, assert_same):
    with PdmCacheWriter(tmp_path, origin={}) as writer:
        assert writer.add(*drive[0]) and writer.add(road_scene) and writer.add(*drive[1])
    cache = PdmCache(tmp_path)
    for stored, scene in zip(cache, (drive[0][0], road_scene, drive[1][0]), strict=True):
        assert_same(stored, scene)
    assert set(open_shard(tmp_path / "scenes-00000.arrow").read_tables()) == {True, False}


def test_vertices_that_are_not_those_of_the_map_are_refused(drive):
    scene, world = drive[0]
    moved = world.copy()
    moved[3, 0] += 1e-3
    with pytest.raises(SceneError, match="scene s0: its vertices are not those of its map less its origin"):
        ShardWriter().add(scene, moved)


def test_a_rotated_frame_has_no_global_map(drive):
    scene, world = drive[0]
    turned = dataclasses.replace(scene, origin=scene.origin + np.array([0, 0, 0.3]))
    with pytest.raises(SceneError, match="its local frame is rotated by 0.3 rad"):
        ShardWriter().add(turned, world)


def test_facts_for_the_extended_score_come_back_and_may_be_missing(tmp_path, extended, road_scene, assert_same):
    plain = dataclasses.replace(road_scene, token="plain")
    with PdmCacheWriter(tmp_path, origin={}) as writer:
        assert writer.add(plain) and writer.add(extended)
    cache = PdmCache(tmp_path)
    assert_same(cache[0], plain)
    assert_same(cache[1], extended)
    assert cache.manifest["dtypes"]["agent_sightings"] == "int8"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("agent_sightings", [[0, 9], [0, 0]], "agent_sightings is \\[0, 9\\] for track 0"),
        ("agent_sightings", [[0, 1], [3, 2]], "for track 1"),
        ("agent_sightings", [[0, 1]], "A=2 in agent_poses"),
        ("history_times_us", [1, 3, 2, 4], "give increasing clocks"),
        ("light_offsets", [0, 2, 6], "a ring has at least 3"),
        ("light_offsets", [0, 3, 9], "there are 6 vertices"),
        ("light_frames", [1, 512], "the frames 0 to 8"),
        ("light_frames", [0, 1], "the frames 0 to 8"),
    ],
)
def test_facts_that_contradict_themselves_are_refused(extended, field, value, told):
    array = np.array(value, dtype=getattr(extended.extended, field).dtype)
    broken = dataclasses.replace(extended, extended=dataclasses.replace(extended.extended, **{field: array}))
    with pytest.raises(SceneError, match=told):
        validate(broken)


def test_history_that_is_not_finite_is_refused(extended):
    states = extended.extended.history_states.copy()
    states[2, 3] = np.nan
    broken = dataclasses.replace(extended, extended=dataclasses.replace(extended.extended, history_states=states))
    with pytest.raises(SceneError, match=r"history_states\[2, 3\] is nan"):
        validate(broken)


def test_what_a_writer_adds_and_what_failed_is_kept(tmp_path, road_scene):
    writer = ShardWriter()
    writer.add(road_scene)
    writer.record_failure("lost", "no route")
    entry = writer.write(tmp_path / "x.arrow", {"plan": "abc"})
    shard = open_shard(tmp_path / "x.arrow")
    assert shard.num_scenes == 1 == entry["scenes"]
    assert shard.facts["plan"] == "abc" and shard.facts["failed"] == [{"token": "lost", "reason": "no route"}]
    assert shard.entry() == entry
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]


def test_a_shard_without_scenes_can_be_read(tmp_path):
    ShardWriter().write(tmp_path / "x.arrow", {})
    assert open_shard(tmp_path / "x.arrow").num_scenes == 0


def test_files_that_are_no_shards_are_refused(tmp_path):
    path = tmp_path / "x.arrow"
    path.write_bytes(b"ARROW1 but not really")
    with pytest.raises(ValueError):
        open_shard(path)
    for schema, told in ((pa.schema([("a", pa.int32())]), "other columns"), (cache_format.SCHEMA, "no facts")):
        with pa.ipc.new_file(str(path), schema) as writer:
            writer.write_batch(pa.RecordBatch.from_pydict({name: [] for name in schema.names}, schema=schema))
        with pytest.raises(ValueError, match=told):
            open_shard(path)


def test_facts_are_json_that_a_person_can_read(tmp_path, road_scene):
    writer = ShardWriter()
    writer.add(road_scene)
    writer.write(tmp_path / "x.arrow", {"machine": {"cpu": "abacus"}})
    with pa.memory_map(str(tmp_path / "x.arrow")) as file:
        metadata = pa.ipc.open_file(file).get_batch_with_custom_metadata(0).custom_metadata
    assert json.loads(metadata[b"recogdrive"])["machine"] == {"cpu": "abacus"}
