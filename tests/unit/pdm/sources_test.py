"""Tests of pdm/sources.py."""

import dataclasses

import gin
import pytest

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.pdm.cache import CacheError, PdmCache, PdmCacheWriter
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.from_scene import pdm_scene
from recogdrive.pdm.sources import CachedPdmScenes, TownPdmScenes, write_scenes


def _write(folder, *scenes) -> None:
    with PdmCacheWriter(folder, origin={"source": "test"}) as writer:
        write_scenes(writer, scenes, TownPdmScenes())


def test_town_scenes_are_made_from_the_scene(straight_scene, assert_same):
    assert_same(TownPdmScenes()(straight_scene), pdm_scene(straight_scene))


def test_cached_scenes_are_found_by_token(tmp_path, assert_same):
    town = SyntheticTown(num_scenes=3, seed=1)
    _write(tmp_path, *town)
    source = CachedPdmScenes(str(tmp_path))
    for scene in reversed(town):
        assert_same(source(scene), pdm_scene(scene))


def test_a_token_the_container_does_not_hold_is_refused_with_its_size(tmp_path, straight_scene):
    _write(tmp_path, *SyntheticTown(num_scenes=2, seed=1))
    with pytest.raises(SceneError, match="scene 00000000000000aa is not in the container .* holds 2 scenes"):
        CachedPdmScenes(str(tmp_path))(straight_scene)


@pytest.mark.parametrize("path", [None, ""])
def test_no_path_is_refused_with_the_knob_to_set(path):
    with pytest.raises(ValueError, match="set PDM_CACHE"):
        CachedPdmScenes(path)


def test_a_path_without_container_is_refused_before_anything_is_done_in_it(tmp_path):
    with pytest.raises(CacheError, match="no container at .*nothing: write one with an experiment such as mini_cache"):
        CachedPdmScenes(str(tmp_path / "nothing")).require()
    with pytest.raises(CacheError, match=r"manifest\.json is missing"):
        CachedPdmScenes(str(tmp_path)).require()


def test_the_folder_of_the_run_that_wrote_a_container_names_it(tmp_path, assert_same):
    town = SyntheticTown(num_scenes=1, seed=1)
    _write(tmp_path / "scenes", *town)
    source = CachedPdmScenes(str(tmp_path))
    source.require()
    assert_same(source(town[0]), pdm_scene(town[0]))


def test_scenes_that_have_no_record_are_listed_with_the_reason(tmp_path, straight_scene):
    blind = dataclasses.replace(straight_scene, future=None)
    _write(tmp_path, blind, *SyntheticTown(num_scenes=1, seed=1))
    cache = PdmCache(tmp_path)
    assert len(cache) == 1
    assert [failure["token"] for failure in cache.failed] == ["00000000000000aa"]
    assert "0 poses" in cache.failed[0]["reason"]


def test_the_reason_of_a_failed_scene_is_told_when_it_is_asked_for(tmp_path, straight_scene):
    _write(tmp_path, dataclasses.replace(straight_scene, future=None))
    with pytest.raises(SceneError, match="lists 1 failed ones. It failed when written: .*0 poses"):
        CachedPdmScenes(str(tmp_path))(straight_scene)


def test_sources_are_built_by_gin(tmp_path, straight_scene):
    _write(tmp_path, straight_scene)
    gin.parse_config(f"CachedPdmScenes.path = {str(tmp_path)!r}")
    source = gin.get_configurable("CachedPdmScenes")()
    assert source(straight_scene).token == straight_scene.token
    assert gin.get_configurable("TownPdmScenes")()(straight_scene).normaliser_name == "expert"


def test_cached_records_are_found_without_a_scene(tmp_path, assert_same):
    town = SyntheticTown(num_scenes=2, seed=1)
    _write(tmp_path, *town)
    assert_same(CachedPdmScenes(str(tmp_path)).by_token(town[1].token), pdm_scene(town[1]))
