import types

import numpy as np
import pytest

from recogdrive.data.hidden_cache.reader import HiddenStateCache
from recogdrive.data.hidden_cache.shuffled import ShuffledHiddenStates

from .conftest import make_states, write_container


@pytest.fixture(scope="module")
def everything():
    return [make_states(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, everything):
    folder = tmp_path_factory.mktemp("run") / "hidden_states"
    write_container(folder, everything)
    return folder


def test_every_scene_has_the_states_of_another_and_each_is_used_once(folder, everything):
    cache = ShuffledHiddenStates(folder, seed=3)
    others = {states.token: cache.other(states.token) for states in everything}
    assert set(others.values()) == set(others)
    assert all(token != other for token, other in others.items())
    known = {states.token: states for states in everything}
    for token, other in others.items():
        context = cache(types.SimpleNamespace(token=token))
        np.testing.assert_array_equal(context.tokens, known[other].tokens)
        np.testing.assert_array_equal(context.mask, np.arange(12) >= 12 - known[other].length)


def test_a_sample_keeps_its_own_status_and_target(folder, everything):
    cache = ShuffledHiddenStates(folder)
    split = types.SimpleNamespace(name="town", tokens=tuple(states.token for states in everything))
    shuffled, own = cache.samples(split)[2], HiddenStateCache(folder).samples(split)[2]
    for name in ("history_trajectory", "status_feature", "trajectory", "index"):
        np.testing.assert_array_equal(shuffled[name], own[name])
    assert not np.array_equal(shuffled["context"], own["context"])


def test_its_fingerprint_tells_it_from_the_cache_and_from_other_seeds(folder):
    found = {
        cache.fingerprint
        for cache in (HiddenStateCache(folder), *(ShuffledHiddenStates(folder, seed=s) for s in (0, 1)))
    }
    assert len(found) == 3
    assert ShuffledHiddenStates(folder, seed=1).fields["shuffled"] == 1
