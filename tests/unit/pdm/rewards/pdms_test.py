"""PDMS as a reward, on the device in sizes that just hold three scenes, and on the host in float64 in larger ones.

One program each; the batch has a blank row.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.rewards.host import HostReward, host_pdms
from recogdrive.pdm.rewards.pdms import PARTS, PdmsReward
from recogdrive.pdm.scorer import PdmScorer
from recogdrive.pdm.scores import REINFORCEMENT_WEIGHTS

pytestmark = pytest.mark.heavy
ROUNDING = 1e-5
"""Between float32 and float64."""


@pytest.fixture(scope="module")
def batch(records, batch_of):
    layout = PdmsReward().layouts[0]
    return batch_of(records, layout, functools.reduce(lambda a, b: a.union(b), map(layout.measure, records)))


@pytest.fixture(scope="module")
def trajectories(plans):
    return np.concatenate([plans, plans[:1]])


@pytest.fixture(scope="module")
def rewarded(batch, trajectories):
    reward = PdmsReward()
    return jax.jit(lambda *args: reward.collect(reward.submit(*args), args[1]))(batch, trajectories)


@pytest.fixture(scope="module")
def scores(records, plans):
    return PdmScorer(REINFORCEMENT_WEIGHTS, dtype="float64", max_scenes=1).score(records, plans)


def test_the_reward_is_the_score_with_the_references_weights(rewarded, scores):
    np.testing.assert_allclose(rewarded.total[:-1], scores.score, rtol=ROUNDING)
    assert len(np.unique(rewarded.total[:-1, :2])) > 2


def test_its_parts_are_the_sub_scores(rewarded, scores):
    assert set(rewarded.parts) == set(PdmsReward().part_names)
    np.testing.assert_array_equal(rewarded.parts["pdms"], rewarded.total)
    for name in PARTS:
        np.testing.assert_allclose(rewarded.parts[name][:-1], getattr(scores, name), rtol=ROUNDING, err_msg=name)


def test_a_rollout_that_is_not_finite_is_unknown_and_no_other(rewarded):
    assert np.isnan(rewarded.total[:-1, 2]).all()
    assert np.isfinite(rewarded.total[:-1, :2]).all()


def test_a_scene_without_record_is_unknown(rewarded):
    for values in (rewarded.total, *rewarded.parts.values()):
        assert np.isnan(values[-1]).all()


def test_a_host_function_gives_the_same_inside_a_gradient(rewarded, records, batch, trajectories, caplog):
    reward = HostReward(host_pdms)
    reward.attach(records.__getitem__)

    def loss(scale, batch, trajectories):
        pending = reward.submit(batch, scale * trajectories)
        meanwhile = scale**3
        found = reward.collect(pending, meanwhile)
        return meanwhile, found

    with caplog.at_level(logging.ERROR, "absl"):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, found), gradient = jax.block_until_ready(step(jnp.float32(1), batch, trajectories))
    reward.close()
    assert gradient == 3 and not caplog.text
    np.testing.assert_allclose(found.total, rewarded.total, rtol=ROUNDING)
    assert found.parts.keys() == rewarded.parts.keys()
    for name, values in rewarded.parts.items():
        np.testing.assert_allclose(found.parts[name], values, rtol=ROUNDING, err_msg=name)
