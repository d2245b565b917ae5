"""Weightings of the final score."""

import gin
import pytest

from recogdrive.pdm.scores import EVALUATION_WEIGHTS, REINFORCEMENT_WEIGHTS, ScoreWeights


def parts(weights):
    return weights.progress, weights.time_to_collision, weights.comfort, weights.driving_direction


def test_evaluation_weights_are_navsims():
    assert parts(EVALUATION_WEIGHTS) == (5, 5, 2, 0)


def test_the_reward_weighs_progress_twice_as_much():
    assert parts(REINFORCEMENT_WEIGHTS) == (10, 5, 2, 0)


@pytest.mark.parametrize("name", ["progress", "time_to_collision", "comfort", "driving_direction"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_negative_or_not_finite_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}={value}.*must be finite, not negative and not all zero"):
        ScoreWeights(**{name: value})


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="not all zero"):
        ScoreWeights(0, 0, 0, 0)


def test_one_weight_alone_is_enough():
    assert parts(ScoreWeights(0, 0, 0, 1)) == (0, 0, 0, 1)


def test_weights_can_be_told_apart_and_looked_up():
    # jit takes them as static arguments.
    assert ScoreWeights(10) == REINFORCEMENT_WEIGHTS
    assert {EVALUATION_WEIGHTS: 1}[ScoreWeights()] == 1


def test_gin_can_set_them():
    gin.parse_config("ScoreWeights.progress = 7.0")
    assert parts(gin.get_configurable(ScoreWeights)()) == (7, 5, 2, 0)
