"""Tests of pdm/cache.py and of the layout in pdm/cache_format.py."""

import dataclasses
import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
import pytest

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.pdm import cache as cache_module
from recogdrive.pdm import cache_format
from recogdrive.pdm.cache import CacheError, PdmCache, PdmCacheWriter, fingerprint, pdm_stream
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.from_scene import pdm_scene
from recogdrive.pdm.machine import machine_stamp
from recogdrive.pdm.reference_scenes import ReferenceScenes
from recogdrive.pdm.validation import GEOMETRY

ORIGIN = {"source": "test", "seed": 3}


def _write(folder, scenes, **options):
    with PdmCacheWriter(folder, origin=ORIGIN, **options) as writer:
        for scene in scenes:
            writer.add(scene)
    return writer


@pytest.fixture
def roads(road_scene):
    """Seven scenes that differ in token, speed and number of agents."""
    return [
        dataclasses.replace(
            road_scene,
            token=f"road{k}",
            timestamp_us=k,
            agent_poses=road_scene.agent_poses[:, : k % 3] + np.float32(k),
            agent_valid=road_scene.agent_valid[:, : k % 3],
            agent_sizes=road_scene.agent_sizes[: k % 3],
            agent_speeds=road_scene.agent_speeds[: k % 3],
            agent_types=road_scene.agent_types[: k % 3],
        )
        for k in range(7)
    ]


def test_all_reference_scenes_come_back_bit_for_bit(tmp_path, golden_pdm, assert_same):
    scenes = list(ReferenceScenes(golden_pdm))
    assert not _write(tmp_path, scenes, scenes_per_shard=20).failed
    cache = PdmCache(tmp_path)
    assert len(cache) == len(scenes)
    for index, scene in enumerate(scenes):
        assert_same(cache[index], scene)


def test_scenes_of_the_town_come_back_bit_for_bit(tmp_path, assert_same):
    scenes = [pdm_scene(scene) for scene in SyntheticTown(num_scenes=12, seed=5)]
    _write(tmp_path, scenes)
    for stored, scene in zip(PdmCache(tmp_path), scenes, strict=True):
        assert_same(stored, scene)


def test_scenes_in_float64_come_back_in_float64(tmp_path, road_scene, assert_same):
    third = {name: getattr(road_scene, name).astype(np.float64) / 3 for name in GEOMETRY}
    scene = dataclasses.replace(road_scene, **third)
    _write(tmp_path, [scene])
    assert_same(PdmCache(tmp_path)[0], scene)
    assert PdmCache(tmp_path).manifest["dtypes"]["vertices"] == "float64"


def test_a_thousand_agents_come_back(tmp_path, road_scene, assert_same):
    rng = np.random.default_rng(0)
    scene = dataclasses.replace(
        road_scene,
        agent_poses=rng.normal(scale=50, size=(51, 1000, 3)).astype(np.float32),
        agent_valid=rng.random((51, 1000)) < 0.5,
        agent_sizes=np.ones((1000, 2), dtype=np.float32),
        agent_speeds=np.zeros(1000),
        agent_types=np.zeros(1000, dtype=np.int8),
    )
    _write(tmp_path, [scene])
    assert_same(PdmCache(tmp_path)[0], scene)


def test_a_scene_is_writable_and_independent_of_the_container(tmp_path, roads):
    _write(tmp_path, roads)
    cache = PdmCache(tmp_path)
    cache[2].agent_poses[:] = 0
    cache[2].vertices[:] = 0
    assert cache[2].vertices.any()
    assert cache[2].agent_poses.any()


def test_negative_indices_count_from_the_end_and_others_are_refused(tmp_path, roads):
    _write(tmp_path, roads, scenes_per_shard=3)
    cache = PdmCache(tmp_path)
    assert cache[-1].token == "road6"
    for index in (7, -8):
        with pytest.raises(IndexError, match=f"scene {index} of .* 7 scenes"):
            cache[index]


def test_scenes_are_found_across_shards(tmp_path, roads, assert_same):
    _write(tmp_path, roads, scenes_per_shard=3)
    cache = PdmCache(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        *(f"scenes-0000{k}.arrow" for k in range(3)),
    ]
    assert cache.tokens == tuple(f"road{k}" for k in range(7))
    assert_same(cache.by_token("road4"), roads[4])


def test_the_manifest_says_what_wrote_what(tmp_path, roads):
    _write(tmp_path, roads, scenes_per_shard=4)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format"] == cache_format.VERSION
    assert manifest["creator"].startswith("recogdrive ")
    assert manifest["machines"] == [machine_stamp()]
    assert manifest["machines"][0]["numpy"] == np.__version__
    assert manifest["origin"] == ORIGIN
    assert manifest["num_scenes"] == 7
    assert [shard["scenes"] for shard in manifest["shards"]] == [4, 3]
    for shard in manifest["shards"]:
        content = (tmp_path / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest["bytes"] == sum(shard["bytes"] for shard in manifest["shards"])


def test_the_fingerprint_depends_on_origin_and_tokens_only(tmp_path, roads):
    _write(tmp_path / "a", roads)
    _write(tmp_path / "b", [dataclasses.replace(scene, timestamp_us=9) for scene in roads], scenes_per_shard=2)
    expected = fingerprint(ORIGIN, [scene.token for scene in roads])
    assert PdmCache(tmp_path / "a").fingerprint == PdmCache(tmp_path / "b").fingerprint == expected
    assert fingerprint({"source": "other"}, ["a"]) != fingerprint({"source": "test"}, ["a"])
    assert fingerprint({}, ["a", "b"]) != fingerprint({}, ["b", "a"])


def test_the_same_scenes_make_the_same_files(tmp_path, roads):
    for name in ("a", "b"):
        _write(tmp_path / name, roads)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_second_scene_of_the_same_token_is_listed_as_failed(tmp_path, roads):
    with PdmCacheWriter(tmp_path, origin=ORIGIN) as writer:
        assert writer.add(roads[0])
        assert not writer.add(dataclasses.replace(roads[1], token="road0"))
    cache = PdmCache(tmp_path)
    assert cache.tokens == ("road0",)
    assert cache.failed[0]["token"] == "road0"
    assert "already" in cache.failed[0]["reason"]


def test_a_scene_that_does_not_validate_is_listed_as_failed_and_the_others_stored(tmp_path, roads):
    broken = dataclasses.replace(roads[1], centerline=roads[1].centerline[:1])
    writer = _write(tmp_path, [roads[0], broken, roads[2]])
    assert writer.tokens == ["road0", "road2"]
    (failure,) = PdmCache(tmp_path).failed
    assert failure["token"] == "road1"
    assert "centerline is 1 point" in failure["reason"]


def test_a_scene_of_another_dtype_is_listed_as_failed_not_converted(tmp_path, roads):
    wide = {name: getattr(roads[1], name).astype(np.float64) for name in GEOMETRY}
    _write(tmp_path, [roads[0], dataclasses.replace(roads[1], **wide)])
    (failure,) = PdmCache(tmp_path).failed
    assert "agent_poses is float64 but the container holds float32" in failure["reason"]


def test_a_container_of_no_scenes_can_be_read(tmp_path):
    _write(tmp_path, [])
    cache = PdmCache(tmp_path)
    assert (len(cache), cache.tokens, cache.failed) == (0, (), [])
    cache.verify()


def test_interrupted_writing_leaves_no_container(tmp_path, roads):
    with pytest.raises(KeyboardInterrupt), PdmCacheWriter(tmp_path, origin=ORIGIN, scenes_per_shard=2) as writer:
        for scene in roads:
            writer.add(scene)
        raise KeyboardInterrupt
    assert (tmp_path / "scenes-00000.arrow").exists()
    with pytest.raises(CacheError, match="manifest.json is missing, or writing never came to its end"):
        PdmCache(tmp_path)


def test_writing_again_removes_what_an_interrupted_writer_left(tmp_path, roads):
    (tmp_path / "scenes-00007.arrow").write_bytes(b"old")
    (tmp_path / "scenes-00000.arrow.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    _write(tmp_path, roads)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "scenes-00000.arrow", "notes.txt"}


def test_a_container_is_not_overwritten(tmp_path, roads):
    _write(tmp_path, roads)
    with pytest.raises(CacheError, match="holds a container already"):
        PdmCacheWriter(tmp_path, origin=ORIGIN)
    assert len(PdmCache(tmp_path)) == 7


def test_a_complete_container_takes_no_more_scenes(tmp_path, roads):
    writer = _write(tmp_path, roads[:1])
    with pytest.raises(CacheError, match="is complete"):
        writer.add(roads[1])


def test_shards_of_no_scenes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="scenes_per_shard=0"):
        PdmCacheWriter(tmp_path, origin=ORIGIN, scenes_per_shard=0)


def _edit_manifest(folder, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(("version", "remedy"), [(99, "newer version"), (1, "write it anew"), ("x", "write it anew")])
def test_another_version_is_refused(tmp_path, roads, version, remedy):
    _write(tmp_path, roads)
    _edit_manifest(tmp_path, format=version)
    with pytest.raises(CacheError, match=f"format {version!r}, this version reads 2; .*{remedy}"):
        PdmCache(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path, roads):
    _write(tmp_path, roads)
    (tmp_path / "manifest.json").write_text('{"format": 1, "sha')
    with pytest.raises(CacheError, match=r"manifest\.json cannot be read"):
        PdmCache(tmp_path)


def test_a_truncated_shard_is_refused_on_opening(tmp_path, roads):
    _write(tmp_path, roads)
    shard = tmp_path / "scenes-00000.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(CacheError, match=rf"truncated \({len(content) - 1} of {len(content)} bytes\)"):
        PdmCache(tmp_path)


def test_a_missing_shard_is_refused_on_opening(tmp_path, roads):
    _write(tmp_path, roads, scenes_per_shard=4)
    (tmp_path / "scenes-00001.arrow").unlink()
    with pytest.raises(CacheError, match=r"scenes-00001\.arrow is missing"):
        PdmCache(tmp_path)


def test_a_flipped_byte_anywhere_is_found_by_verify(tmp_path, roads):
    _write(tmp_path, roads)
    shard = tmp_path / "scenes-00000.arrow"
    content = bytearray(shard.read_bytes())
    PdmCache(tmp_path).verify()
    for place in (0, len(content) // 2, len(content) - 1):
        damaged = content.copy()
        damaged[place] ^= 0xFF
        shard.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"scenes-00000\.arrow differs from what was written"):
            PdmCache(tmp_path).verify()


def test_a_flipped_byte_never_yields_a_wrong_scene(tmp_path, roads, assert_same):
    _write(tmp_path, roads)
    shard = tmp_path / "scenes-00000.arrow"
    content = bytearray(shard.read_bytes())
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = content.copy()
        damaged[place] ^= 1 << int(place) % 8
        shard.write_bytes(damaged)
        for index, scene in enumerate(roads):
            try:
                assert_same(PdmCache(tmp_path)[index], scene)
            except CacheError:
                refused += 1
    assert refused


def test_a_shard_of_another_container_is_found_by_verify(tmp_path, roads):
    _write(tmp_path, roads)
    _edit_manifest(tmp_path, fingerprint="0" * 64)
    with pytest.raises(CacheError, match="not those of the fingerprint"):
        PdmCache(tmp_path).verify()


def test_a_container_is_read_from_threads(tmp_path, roads, assert_same):
    _write(tmp_path, roads, scenes_per_shard=2)
    cache = PdmCache(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        for index, stored in enumerate(pool.map(cache.__getitem__, list(range(7)) * 8)):
            assert_same(stored, roads[index % 7])


def test_few_shards_keep_their_polygons_in_memory(tmp_path, roads, assert_same, monkeypatch):
    monkeypatch.setattr(cache_module, "TABLES_IN_MEMORY", 2)
    _write(tmp_path, roads, scenes_per_shard=1)
    cache = PdmCache(tmp_path)
    for index in (0, 1, 2, 0, 6, 3, 3, 0):
        assert_same(cache[index], roads[index])
        assert len(cache._tables) <= 2
    assert list(cache._tables) == [3, 0]


def test_a_pickled_container_takes_no_scenes_along(tmp_path, roads, assert_same):
    _write(tmp_path, [dataclasses.replace(roads[0], token=f"{k:0200d}", log_name="x" * 5000) for k in range(20)])
    cache = PdmCache(tmp_path)
    assert cache[3].token == f"{3:0200d}"
    assert len(cache.tokens) == 20
    content = pickle.dumps(cache)
    assert len(content) < 2500
    assert_same(pickle.loads(content)[3], cache[3])


def test_an_unknown_token_is_refused_with_the_number_of_scenes(tmp_path, roads):
    _write(tmp_path, roads)
    with pytest.raises(SceneError, match="scene nobody is not in the container .* holds 7 scenes"):
        PdmCache(tmp_path).by_token("nobody")


def _tokens(scenes) -> list[str]:
    return [scene.token for scene in scenes]


def test_a_stream_without_seed_keeps_the_order_and_the_rest(tmp_path, roads):
    _write(tmp_path, roads)
    batches = list(pdm_stream(PdmCache(tmp_path), 3, collate=_tokens, seed=None, num_epochs=1))
    assert batches == [["road0", "road1", "road2"], ["road3", "road4", "road5"], ["road6"]]


def test_a_stream_shows_every_scene_once_an_epoch_in_a_new_order(tmp_path, roads):
    _write(tmp_path, roads)
    batches = list(pdm_stream(PdmCache(tmp_path), 7, collate=_tokens, seed=1, num_epochs=2))
    assert sorted(batches[0]) == sorted(batches[1]) == [f"road{k}" for k in range(7)]
    assert batches[0] != batches[1]


def test_a_stream_depends_on_its_seed_only(tmp_path, roads):
    _write(tmp_path, roads)

    def order(seed: int, **options) -> list[list[str]]:
        stream = pdm_stream(PdmCache(tmp_path), 2, collate=_tokens, seed=seed, num_epochs=3, **options)
        return list(stream)

    assert order(4) == order(4, num_threads=3, prefetch=5)
    assert order(4) != order(5)


def test_an_endless_stream_runs_on_across_epochs_in_full_batches(tmp_path, roads):
    _write(tmp_path, roads)
    batches = iter(pdm_stream(PdmCache(tmp_path), 4, collate=_tokens, seed=2))
    tokens = [token for _ in range(7) for token in next(batches)]
    for epoch in range(4):
        assert len(set(tokens[7 * epoch : 7 * epoch + 7])) == 7


def test_a_stream_resumes_where_its_state_was_taken(tmp_path, roads):
    _write(tmp_path, roads)
    whole = iter(pdm_stream(PdmCache(tmp_path), 2, collate=_tokens, seed=2))
    for _ in range(5):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    resumed = iter(pdm_stream(PdmCache(tmp_path), 2, collate=_tokens, seed=2))
    resumed.set_state(state)
    assert [next(resumed) for _ in range(6)] == [next(whole) for _ in range(6)]


def test_the_collate_function_is_given_whole_scenes(tmp_path, roads, assert_same):
    _write(tmp_path, roads)
    stream = pdm_stream(PdmCache(tmp_path), 2, collate=list, seed=None, num_epochs=1)
    assert isinstance(stream, grain.IterDataset)
    first = next(iter(stream))
    assert_same(first[1], roads[1])


def test_a_stream_of_nothing_or_of_empty_batches_is_refused(tmp_path, roads):
    with pytest.raises(ValueError, match="holds no scenes"):
        pdm_stream([], 2, collate=list, seed=None)
    with pytest.raises(ValueError, match="batch_size=0"):
        pdm_stream(roads, 0, collate=list, seed=None)
