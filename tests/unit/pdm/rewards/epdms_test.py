"""EPDMS as a reward of three scenes and a blank row: the scorer's program, which is compiled once."""

import numpy as np
import pytest

from recogdrive.pdm.extended import ExtendedScorer
from recogdrive.pdm.extended_batch import ExtendedSizes
from recogdrive.pdm.extended_scores import SUB_SCORES
from recogdrive.pdm.map_index import build_map_index
from recogdrive.pdm.rewards.epdms import EpdmsReward

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def rewarded(records, plans, batch_of):
    reward = EpdmsReward()
    sizes = ExtendedSizes.fitting(records, [build_map_index(record) for record in records])
    return reward.submit(batch_of(records, reward.layouts[0], sizes), np.concatenate([plans, plans[:1]]))


@pytest.fixture(scope="module")
def scores(records, plans):
    return ExtendedScorer(dtype="float32").score(records, plans)


def test_the_reward_is_the_extended_score_without_filter(rewarded, scores):
    np.testing.assert_allclose(rewarded.total[:-1], scores.score, rtol=1e-6)
    # Whoever passes the red light, as the human does, gets nothing.
    assert rewarded.total[2, 0] == 0 and rewarded.total[0, 0] > 0.9


def test_its_parts_are_the_sub_scores(rewarded, scores):
    assert set(rewarded.parts) == set(EpdmsReward().part_names)
    for name in SUB_SCORES:
        np.testing.assert_allclose(rewarded.parts[f"epdms_{name}"][:-1], getattr(scores, name), rtol=1e-6, err_msg=name)


def test_a_rollout_that_is_not_finite_is_unknown_and_no_other(rewarded):
    assert np.isnan(rewarded.total[:-1, 2]).all()
    assert np.isfinite(rewarded.total[:-1, :2]).all()


def test_a_scene_without_record_is_unknown(rewarded):
    for values in (rewarded.total, *rewarded.parts.values()):
        assert np.isnan(values[-1]).all()
