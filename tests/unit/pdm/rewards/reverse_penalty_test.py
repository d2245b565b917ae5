"""Tests of pdm/rewards/reverse_penalty.py."""

import numpy as np
import pytest

from recogdrive.pdm.rewards.reverse_penalty import ReversePenalty


@pytest.fixture
def plans(straight):
    """Ordinary; 2 m back in the last interval; 1 m back in the third last and in the last, looking to the left; NaN."""
    made = np.tile(straight(10.0), (1, 4, 1, 1)).astype(np.float32)
    made[0, 1, 7, 0] -= 7.0
    made[0, 2] = 0.0
    made[0, 2, :, 2] = np.pi / 2
    made[0, 2, :, 1] = [0, 1, 2, 3, 4, 3, 4, 3]
    made[0, 3, 0, 0] = np.nan
    return made


def test_metres_backwards_in_the_last_second_are_subtracted(plans):
    found = ReversePenalty().submit({}, plans)
    np.testing.assert_allclose(found.total, [[0.0, -2.0, -1.0, np.nan]], atol=1e-6)
    np.testing.assert_array_equal(found.parts["reverse_penalty"], found.total)


def test_more_intervals_may_count(plans):
    np.testing.assert_allclose(ReversePenalty(last_steps=3).submit({}, plans).total[0, :3], [0, -2, -2], atol=1e-6)


@pytest.mark.parametrize("last_steps", [0, 9])
def test_intervals_that_no_plan_has_are_refused(last_steps):
    with pytest.raises(ValueError, match=f"last_steps={last_steps} must be between 1 and 8"):
        ReversePenalty(last_steps)
