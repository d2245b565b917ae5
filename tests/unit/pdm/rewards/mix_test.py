"""Tests of pdm/rewards/mix.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.rewards.epdms import EpdmsReward
from recogdrive.pdm.rewards.extended_comfort import ExtendedComfort
from recogdrive.pdm.rewards.mix import RewardSum
from recogdrive.pdm.rewards.pdms import PdmsReward
from recogdrive.pdm.rewards.reverse_penalty import ReversePenalty
from recogdrive.pdm.rewards.reward import DeviceReward, RewardScores


class Constant(DeviceReward):
    """The same for all rollouts."""

    def __init__(self, name, value):
        self.part_names, self.value = (name,), value

    def __call__(self, batch, trajectories):
        total = jnp.full(trajectories.shape[:2], self.value)
        return RewardScores(total, {self.part_names[0]: total})

    def attach(self, records):
        self.records = records


def scores_of(reward):
    trajectories = jnp.zeros((2, 3, 8, 3))
    return reward.collect(reward.submit({}, trajectories), trajectories)


def test_the_sum_weighs_its_terms_and_shows_their_parts():
    found = scores_of(RewardSum([Constant("one", 0.5), Constant("other", -2.0)], [1.0, 0.25]))
    np.testing.assert_allclose(found.total, np.zeros((2, 3)))
    assert {name: float(values[0, 0]) for name, values in found.parts.items()} == {"one": 0.5, "other": -2.0}


def test_what_is_unknown_to_a_term_is_unknown_to_the_sum_unless_it_does_not_count():
    terms = [Constant("known", 1.0), Constant("unknown", float("nan"))]
    assert np.isnan(scores_of(RewardSum(terms, [1.0, 0.1])).total).all()
    shown = scores_of(RewardSum(terms, [1.0, 0.0]))
    np.testing.assert_array_equal(shown.total, np.ones((2, 3)))
    assert np.isnan(shown.parts["unknown"]).all()


def test_the_sum_needs_what_its_terms_need():
    mixed = RewardSum([PdmsReward(), EpdmsReward(), ReversePenalty()], [0.5, 0.5, 0.1])
    assert [layout.prefix for layout in mixed.layouts] == ["pdm/", "epdm/"]
    assert not mixed.uses_previous_plans
    assert RewardSum([mixed, ExtendedComfort()], [1, 1]).uses_previous_plans
    assert {"pdms", "epdms", "reverse_penalty"} <= set(mixed.part_names)


def test_terms_are_told_where_records_are():
    terms = [Constant("one", 1.0), Constant("other", 1.0)]
    RewardSum(terms, [1, 1]).attach("records")
    assert [term.records for term in terms] == ["records", "records"]


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ([], [], "0 terms and 0 weights"),
        ([Constant("one", 1.0)], [1.0, 2.0], "1 terms and 2 weights"),
        ([Constant("one", 1.0)], [-1.0], "not negative"),
        ([Constant("one", 1.0)], [float("nan")], "finite"),
        ([Constant("one", 1.0)], [0.0], "not all zero"),
        ([Constant("one", 1.0), Constant("one", 2.0)], [1.0, 1.0], "a part 'one'"),
    ],
)
def test_a_sum_that_cannot_be_formed_is_refused(terms, weights, message):
    with pytest.raises(ValueError, match=message):
        RewardSum(terms, weights)
