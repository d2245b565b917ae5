"""Two-frame extended comfort as a reward: one program for three scenes."""

import jax
import numpy as np
import pytest

from recogdrive.pdm.extended import ExtendedScorer
from recogdrive.pdm.rewards.extended_comfort import ExtendedComfort
from recogdrive.pdm.simulator import simulate
from recogdrive.pdm.trajectory import absolute_poses, interpolate_candidate


@jax.jit
def driven(states, plans):
    """States of cars that follow plans."""
    return simulate(interpolate_candidate(absolute_poses(plans, states[:, :3]), states[:, :3]), states)


@pytest.fixture(scope="module")
def batch(straight):
    """A frame before that drove on at 10 m/s, in a frame of its own; likewise but unknown; and one of NaN."""
    now = np.zeros((3, 11), np.float32)
    now[:, :4] = [3.0, -2.0, 1.0, 10.0]
    before = np.zeros((3, 11), np.float32)
    before[:, :4] = [50.0, 20.0, -2.0, 10.0]
    before[2] = np.nan
    return {
        "current/ego_state": now,
        "previous/ego_state": before,
        "previous/plan": np.tile(straight(10.0), (3, 1, 1)).astype(np.float32),
        "previous/known": np.array([True, False, True]),
    }


@pytest.fixture(scope="module")
def rollouts(straight):
    """The same drive, a stop, a swerve, and one with a NaN, in every scene."""
    made = np.tile(straight(10.0), (3, 4, 1, 1)).astype(np.float32)
    made[:, 1] = straight(2.0)
    made[:, 2, :, 1] = [0, 0, 1, 2, 2, 1, 0, 0]
    made[:, 3, 2, 0] = np.nan
    return made


@pytest.fixture(scope="module")
def found(batch, rollouts):
    return jax.jit(ExtendedComfort().submit)(batch, rollouts)


def test_rollouts_are_compared_as_the_extended_scorer_does(found, batch, rollouts):
    now, before = batch["current/ego_state"][:1], batch["previous/ego_state"][:1]
    plans = np.concatenate([rollouts[0, :3], batch["previous/plan"][:1]])
    drives = np.asarray(driven(np.concatenate([now, now, now, before]), plans))
    expected = ExtendedScorer(dtype="float32").compare(drives[:3], np.repeat(drives[3:], 3, axis=0), 5)
    assert found.total[0, :3].tolist() == expected.tolist() == [1.0, 0.0, 0.0]
    assert found.parts["extended_comfort"][0, :3].tolist() == expected.tolist()


def test_without_a_known_frame_before_all_rollouts_get_the_same(found):
    assert found.total[1:, :3].tolist() == [[0.0] * 3] * 2
    assert np.isnan(found.parts["extended_comfort"][1:]).all()


def test_a_rollout_that_is_not_finite_is_unknown(found):
    assert np.isnan(found.total[:, 3]).all()


def test_a_missing_entry_is_named(batch, rollouts):
    without = {name: values for name, values in batch.items() if name != "previous/plan"}
    with pytest.raises(ValueError, match="lacks previous/plan"):
        ExtendedComfort().submit(without, rollouts)
