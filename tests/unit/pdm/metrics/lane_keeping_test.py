"""Lane keeping on hand-worked drives beside a straight centre line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.metrics.lane_keeping import lane_keeping

LINE = np.array([[[-100.0, 0.0], [0.0, 0.0], [200.0, 0.0], [200.0, 0.0]]])
_lane_keeping = jax.jit(lane_keeping)


def score(offsets_m, in_intersection=()):
    """Score and failing step of a drive along x, `offsets_m` (41 of them) to the left."""
    centers = np.stack([np.arange(41.0), np.broadcast_to(offsets_m, 41)], axis=-1)[None, None]
    inside = np.zeros((1, 1, 41), bool)
    inside[..., list(in_intersection)] = True
    with jax.enable_x64(True):
        found = _lane_keeping(jnp.asarray(centers), jnp.asarray(inside), jnp.asarray(LINE), jnp.array([3]))
    return tuple(value.item() for value in found)


def off_at(steps):
    """Offsets of 1 m at some steps, 0 at the others."""
    offsets = np.zeros(41)
    offsets[list(steps)] = 1.0
    return offsets


def test_a_drive_on_the_line_keeps_it():
    assert score(0.0) == (1.0, -1)


@pytest.mark.parametrize("offset, points", [(0.5, 1.0), (-0.5, 1.0), (0.5001, 0.0), (-0.5001, 0.0)])
def test_half_a_metre_still_is_on_the_line(offset, points):
    assert score(offset)[0] == points


@pytest.mark.parametrize("count, found", [(19, (1.0, -1)), (20, (0.0, 24)), (21, (0.0, 24))])
def test_the_twentieth_step_off_the_line_fails(count, found):
    assert score(off_at(range(5, 5 + count))) == found


def test_a_step_on_the_line_starts_the_count_again():
    assert score(off_at([*range(19), *range(20, 39)])) == (1.0, -1)
    assert score(off_at([*range(19), *range(20, 40)])) == (0.0, 39)


def test_steps_in_an_intersection_neither_count_nor_start_the_count_again():
    # 12 steps off, 10 in the intersection (some of them on the line), 7 off: 19. One more fails.
    offsets = off_at([*range(12), *range(14, 29)])
    assert score(offsets, in_intersection=range(12, 22)) == (1.0, -1)
    offsets[29] = 1.0
    assert score(offsets, in_intersection=range(12, 22)) == (0.0, 29)


def test_drives_agree_with_a_loop_over_the_steps():
    rng = np.random.default_rng(0)
    for _ in range(30):
        offsets, inside = 1.0 * (rng.random(41) < 0.95), np.flatnonzero(rng.random(41) < 0.2)
        count, failed = 0, -1
        for step in range(41):
            if step in inside:
                continue
            count = count + 1 if offsets[step] > 0.5 else 0
            if count >= 20:
                failed = step
                break
        assert score(offsets, inside) == (1.0 if failed < 0 else 0.0, failed)


def test_padding_of_the_line_does_not_count():
    # The line ends at (200, 0); its copies beyond that are no further points, nor is the start of the plane.
    centers = np.zeros((1, 1, 41, 2))
    centers[..., 0] = 200.4
    inside = np.zeros((1, 1, 41), bool)
    with jax.enable_x64(True):
        points, _ = _lane_keeping(jnp.asarray(centers), jnp.asarray(inside), jnp.asarray(LINE), jnp.array([3]))
        shorter, _ = _lane_keeping(jnp.asarray(centers), jnp.asarray(inside), jnp.asarray(LINE), jnp.array([2]))
    assert (points.item(), shorter.item()) == (1.0, 0.0)
