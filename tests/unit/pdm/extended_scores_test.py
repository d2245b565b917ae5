"""Weights and filter of the extended score on hand-worked numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.extended_scores import SUB_SCORES, forgive, weighted_score

FULL = dict.fromkeys(SUB_SCORES, 1.0)


@pytest.mark.parametrize(
    "changes, comfort, expected",
    [
        ({}, None, 1.0),
        ({}, 1.0, 1.0),
        ({}, 0.0, 14 / 16),
        ({"ego_progress": 0.5}, None, 11.5 / 14),
        ({"ego_progress": 0.5}, 1.0, 13.5 / 16),
        ({"time_to_collision_within_bound": 0.0}, None, 9 / 14),
        ({"lane_keeping": 0.0, "history_comfort": 0.0}, None, 10 / 14),
        ({"no_at_fault_collisions": 0.5, "driving_direction_compliance": 0.5}, None, 0.25),
        ({"traffic_light_compliance": 0.0}, 1.0, 0.0),
        ({"drivable_area_compliance": 0.0}, None, 0.0),
    ],
)
def test_products_and_weighted_means(changes, comfort, expected):
    assert weighted_score(FULL | changes, comfort) == pytest.approx(expected)


def test_arrays_are_weighted_entry_by_entry():
    scores = {name: jnp.ones((2, 3)) for name in SUB_SCORES} | {"lane_keeping": jnp.zeros((2, 3))}
    np.testing.assert_allclose(weighted_score(scores), np.full((2, 3), 12 / 14), rtol=1e-6)


def test_the_filter_forgives_what_the_human_breaks_and_nothing_else():
    scores = FULL | {"traffic_light_compliance": 0.0, "lane_keeping": 0.0, "no_at_fault_collisions": 0.5}
    breaks = np.array([name in ("traffic_light_compliance", "no_at_fault_collisions") for name in SUB_SCORES])
    forgiven = forgive(scores, breaks)
    assert forgiven == FULL | {"lane_keeping": 0.0}
    assert weighted_score(forgiven) == pytest.approx(12 / 14)
