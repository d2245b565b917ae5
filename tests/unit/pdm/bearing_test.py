"""Ahead and behind on hand-placed agents, and the quirk of those exactly on the axis."""

import jax
import numpy as np
import pytest

from recogdrive.pdm.bearing import ahead_and_behind

_bearing = jax.jit(ahead_and_behind)
DTYPES = ("float32", "float64")


def bearing(agent_xy, *, ego=(0.0, 0.0), heading_rad=0.0, dtype="float64"):
    """Ahead and behind of agents (N, 2)."""
    agents = np.atleast_2d(np.asarray(agent_xy, np.float64)).astype(dtype)
    ones = np.ones(len(agents), dtype)
    with jax.enable_x64(dtype == "float64"):
        found = _bearing(
            ones * ones.dtype.type(ego[0]),
            ones * ones.dtype.type(ego[1]),
            ones * ones.dtype.type(np.cos(heading_rad)),
            ones * ones.dtype.type(np.sin(heading_rad)),
            agents[:, 0],
            agents[:, 1],
        )
    return tuple(np.asarray(v).tolist() for v in found)


def around(angles_deg, distance=10.0):
    angles = np.deg2rad(angles_deg)
    return distance * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ahead_is_within_30_degrees_and_behind_beyond_150(dtype):
    angles = np.array([0.1, 29.9, 30.1, 90, 149.9, 150.1, 179.9, -29.9, -30.1, -149.9, -150.1])
    ahead, behind = bearing(around(angles), dtype=dtype)
    assert ahead == (np.abs(angles) < 30).tolist()
    assert behind == (np.abs(angles) > 150).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_angle_is_taken_at_the_ego_from_its_heading(dtype):
    ego, heading = (100.0, -50.0), 2.5
    angles = np.array([10.0, -40, 100, 170, -155])
    agents = around(angles + np.rad2deg(heading)) + ego
    ahead, behind = bearing(agents, ego=ego, heading_rad=heading, dtype=dtype)
    assert ahead == [True, False, False, False, False]
    assert behind == [False, False, False, True, True]


def test_distance_does_not_matter():
    for distance in (1e-3, 1.0, 1e6):
        assert bearing(around([20.0, 40.0], distance)) == ([True, False], [False, False])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_agent_centred_on_the_rear_axle_is_neither(dtype):
    assert bearing([3.0, 4.0], ego=(3.0, 4.0), dtype=dtype) == ([False], [False])


def reference(ego, heading_rad, agent):
    """nuPlan's way: the arccos of a dot product of unit vectors, NaN beyond 1."""
    heading = np.array([np.cos(heading_rad), np.sin(heading_rad)])
    vector = np.array([agent[0] - ego[0], agent[1] - ego[1]])
    unit = vector / np.sqrt(vector[0] ** 2 + vector[1] ** 2)
    with np.errstate(invalid="ignore"):
        angle = np.arccos(heading[1] * unit[1] + heading[0] * unit[0])
    return bool(angle < np.deg2rad(30)), bool(angle > np.deg2rad(150))


def test_some_agents_on_the_axis_are_neither_as_in_the_reference():
    rng = np.random.default_rng(0)
    headings, distances = rng.uniform(-np.pi, np.pi, 2000), rng.uniform(-50, 50, 2000)
    agents = distances[:, None] * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    with jax.enable_x64(True):
        zeros = np.zeros(2000)
        ahead, behind = map(np.asarray, _bearing(zeros, zeros, np.cos(headings), np.sin(headings), *agents.T))
    expected = np.array([reference((0, 0), h, a) for h, a in zip(headings, agents, strict=True)])
    # Which ones it are is the last digit's choice: the compiler rounds a product and a sum at once.
    for neither in (~expected.any(axis=1), ~(ahead | behind)):
        assert 0.01 < neither.mean() < 0.2
    assert (distances[ahead] > 0).all()
    assert (distances[behind] < 0).all()


def test_next_to_the_axis_the_answer_is_the_references():
    rng = np.random.default_rng(1)
    headings, distances, aside = rng.uniform(-np.pi, np.pi, 500), rng.uniform(-50, 50, 500), rng.uniform(1e-4, 1, 500)
    cos, sin = np.cos(headings), np.sin(headings)
    agents = np.stack([distances * cos - aside * sin, distances * sin + aside * cos], axis=-1)
    with jax.enable_x64(True):
        found = np.stack(_bearing(np.zeros(500), np.zeros(500), cos, sin, *agents.T), axis=-1)
    expected = [reference((0, 0), h, a) for h, a in zip(headings, agents, strict=True)]
    np.testing.assert_array_equal(found, expected)


def test_in_float32_every_agent_on_the_axis_is_ahead_or_behind():
    headings = np.linspace(-3, 3, 200)
    for sign in (1, -1):
        agents = sign * 20.0 * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
        zeros = np.zeros(200, np.float32)
        parts = [v.astype(np.float32) for v in (np.cos(headings), np.sin(headings), *agents.T)]
        ahead, behind = _bearing(zeros, zeros, *parts)
        assert np.asarray(ahead).all() == (sign == 1)
        assert np.asarray(behind).all() == (sign == -1)
