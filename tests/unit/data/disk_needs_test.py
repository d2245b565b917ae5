"""Disk that caches take."""

from recogdrive.data.disk_needs import CACHE_SIZES, disk_needs

SIZES = {cache.name: cache.scene_bytes for cache in CACHE_SIZES}


def test_hidden_states_are_tokens_by_width_by_two_bytes():
    assert SIZES["hidden states 2B, bfloat16"] == 2800 * 1536 * 2 == 8_601_600
    assert SIZES["hidden states 8B, bfloat16"] == 2800 * 3584 * 2 == 20_070_400


def test_compression_leaves_what_the_measurement_says():
    assert 5.7e6 < SIZES["hidden states 2B, compressed"] < 5.8e6
    assert 13.3e6 < SIZES["hidden states 8B, compressed"] < 13.5e6


def test_a_cache_of_all_splits_together_fits_or_does_not():
    per_scene = SIZES["official metric cache"]
    needs = {need.cache.name: need for need in disk_needs({"a": 2, "b": 3}, free_bytes=5 * per_scene)}
    need = needs["official metric cache"]
    assert need.bytes == {"a": 2 * per_scene, "b": 3 * per_scene} and need.fits
    assert needs["scenes to score in (container)"].fits
    assert not needs["hidden states 2B, compressed"].fits
    assert not any(need.fits for need in disk_needs({"a": 1}, free_bytes=0))
