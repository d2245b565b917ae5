"""Overlap of boxes against shapely on the same corners, and first contacts against the obvious loop."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from recogdrive.pdm.batch import ABSENT_M
from recogdrive.pdm.contact import (
    NEVER,
    PROJECTED_STEPS,
    Agents,
    Boxes,
    corners,
    first_contacts,
    overlap_gap,
    polygons_meet,
)
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M

DTYPES = ("float32", "float64")
PAIRS = 64
SEEDS = st.integers(0, 2**32 - 1)
QUARTERS = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
"""Cosine and sine of multiples of 90 degrees: corners of such boxes on the lattice are exact."""


@jax.jit
def _judge(first, first_half, second, second_half):
    one, other = corners(first, *first_half), corners(second, *second_half)
    front = (one[0], one[3])
    gap, error = overlap_gap(first, first_half, second, second_half)
    shapes = tuple(jnp.stack([jnp.stack(corner, axis=-1) for corner in box], axis=-2) for box in (one, other))
    return gap, error, polygons_meet(one, other), polygons_meet(front, other), polygons_meet(other, front), *shapes


def judge(first, second, dtype):
    """Both sides' opinion of PAIRS pairs; a box is (N, 6): x, y, cos, sin, half length, half width."""
    with jax.enable_x64(dtype == "float64"):
        first, second = (jnp.asarray(box.T, dtype) for box in (first, second))
        found = [
            np.asarray(v) for v in _judge(Boxes(*first[:4]), tuple(first[4:]), Boxes(*second[:4]), tuple(second[4:]))
        ]
    gap, error, meets, front_meets, met_front, *shapes = found
    # Hulls, because boxes without width are no valid polygons.
    hulls = [shapely.convex_hull(shapely.multipoints(shape.astype(np.float64))) for shape in shapes]
    fronts = shapely.convex_hull(shapely.multipoints(shapes[0][:, [0, 3]].astype(np.float64)))
    np.testing.assert_array_equal(front_meets, met_front)
    expected, front_expected = shapely.intersects(*hulls), shapely.intersects(fronts, hulls[1])
    # GEOS rounds in the last digit of boxes that all but touch: rational arithmetic has the last word.
    for i in np.flatnonzero(meets != expected):
        expected[i] = truly_meet(hulls[0][i], hulls[1][i])
    return gap, error, meets, front_meets, expected, front_expected


def truly_meet(*polygons):
    """Whether two convex polygons with extent meet, in rational arithmetic: no side of one has the other outside."""
    one, other = ([(Fraction(x), Fraction(y)) for x, y in polygon.exterior.coords[:-1]] for polygon in polygons)
    for polygon, opposite in ((one, other), (other, one)):
        for (ax, ay), (bx, by), (cx, cy) in zip(
            polygon, polygon[1:] + polygon[:1], polygon[2:] + polygon[:2], strict=True
        ):
            inner = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
            if all(((bx - ax) * (y - ay) - (x - ax) * (by - ay)) * inner < 0 for x, y in opposite):
                return False
    return True


def oriented(rng, count, spread, largest):
    headings = rng.uniform(-np.pi, np.pi, count)
    return np.column_stack(
        [
            rng.uniform(-spread, spread, (count, 2)) + rng.choice([0, 300.0]),
            np.cos(headings),
            np.sin(headings),
            rng.uniform(0.1, largest, (count, 2)),
        ]
    )


def on_lattice(rng, count, least=1):
    """Boxes at eighths of a metre that look along the axes; touching ones are common."""
    return np.column_stack(
        [
            rng.integers(-24, 25, (count, 2)) / 8,
            QUARTERS[rng.integers(4, size=count)],
            rng.integers(least, 17, (count, 2)) / 8,
        ]
    )


def nearly_touching(rng, first):
    """Boxes put next to the sides of others, where rounding decides."""
    count = len(first)
    second = oriented(rng, count, 0.0, 3.0)
    same = rng.random(count) < 0.5
    second[same, 2:4] = first[same, 2:4]
    forward = first[:, 2:4]
    left = np.column_stack([-forward[:, 1], forward[:, 0]])
    reach = np.abs((forward * second[:, 2:4]).sum(axis=1)), np.abs((left * second[:, 2:4]).sum(axis=1))
    along = first[:, 4] + second[:, 4] * reach[0] + second[:, 5] * reach[1]
    aside = rng.uniform(-1, 1, count) * first[:, 5]
    second[:, :2] = first[:, :2] + along[:, None] * forward + aside[:, None] * left
    return second


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_boxes_meet_where_shapely_says_that_their_corners_polygons_do(dtype, seed):
    rng = np.random.default_rng(seed)
    first, second = oriented(rng, PAIRS, 4.0, 3.0), oriented(rng, PAIRS, 4.0, 3.0)
    second[:, :2] += first[:, :2].mean(axis=0) - second[:, :2].mean(axis=0)
    gap, _, meets, front_meets, expected, front_expected = judge(first, second, dtype)
    np.testing.assert_array_equal(meets, expected)
    np.testing.assert_array_equal(front_meets, front_expected)
    np.testing.assert_array_equal(gap < 0, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_boxes_within_rounding_of_touching_meet_where_shapely_says_so(dtype, seed):
    rng = np.random.default_rng(seed)
    first = oriented(rng, PAIRS, 4.0, 3.0)
    gap, error, meets, _, expected, _ = judge(first, nearly_touching(rng, first), dtype)
    assert (np.abs(gap) < error).any()
    np.testing.assert_array_equal(meets, expected)
    # What the quick test is sure of is right.
    np.testing.assert_array_equal(expected[gap < -error], True)
    np.testing.assert_array_equal(expected[gap > error], False)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_boxes_on_a_lattice_meet_where_they_touch(dtype, seed):
    rng = np.random.default_rng(seed)
    gap, _, meets, front_meets, expected, front_expected = judge(on_lattice(rng, PAIRS), on_lattice(rng, PAIRS), dtype)
    np.testing.assert_array_equal(meets, expected)
    np.testing.assert_array_equal(front_meets, front_expected)
    np.testing.assert_array_equal(gap <= 0, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_boxes_without_length_or_width_are_segments_and_points(dtype, seed):
    rng = np.random.default_rng(seed)
    first, second = on_lattice(rng, PAIRS, least=0), on_lattice(rng, PAIRS, least=0)
    for box in (first, second):
        box[:, 4:] *= rng.random((PAIRS, 2)) < 0.5
    _, _, meets, front_meets, expected, front_expected = judge(first, second, dtype)
    np.testing.assert_array_equal(meets, expected)
    np.testing.assert_array_equal(front_meets, front_expected)


def test_a_box_inside_another_meets_it():
    outer, inner = np.array([[1, 2, 0.6, 0.8, 3, 2.0]]), np.array([[1.2, 2.1, 0.8, -0.6, 0.2, 0.1]])
    for one, other in ((outer, inner), (inner, outer)):
        gap, _, meets, _, expected, _ = judge(np.repeat(one, PAIRS, 0), np.repeat(other, PAIRS, 0), "float64")
        assert meets.all() and expected.all()
        assert (gap < 0).all()


@pytest.mark.parametrize(
    "second, expected",
    [
        ([5, 0, 1, 0, 2, 0.5], 1.0),  # one behind the other
        ([0, 4, 1, 0, 2, 0.5], 2.5),  # side by side
        ([5, 4, 1, 0, 2, 0.5], 2.5),  # across: the larger of the gaps along the sides
        ([3, 0, 0, 1, 2, 0.5], 0.5),  # across the way
        ([4, 0, 1, 0, 2, 0.5], 0.0),  # touching
        ([1, 0, 1, 0, 2, 0.5], -1.5),  # overlapping: what it takes to part them sideways
        ([2 + np.sqrt(2), 0, np.sqrt(0.5), np.sqrt(0.5), 1, 1], 0.0),  # a corner on the front
    ],
)
def test_the_gap_is_the_largest_along_the_sides(second, expected):
    first = np.array([[0, 0, 1, 0, 2.0, 1.0]])
    gap, error, *_ = judge(np.repeat(first, PAIRS, 0), np.repeat(np.array([second]), PAIRS, 0), "float64")
    assert gap[0] == pytest.approx(expected, abs=1e-12)
    assert 0 < error[0] < 1e-12


def test_corners_run_counter_clockwise_from_the_front_left():
    box = Boxes(*(jnp.array(v) for v in (10.0, 5.0, 0.0, 1.0)))
    found = [(float(x), float(y)) for x, y in corners(box, 2.0, 0.5)]
    assert found == [(9.5, 7), (9.5, 3), (10.5, 3), (10.5, 7)]


# First contacts: S scenes, G trajectories, A tracks.
S, G, A = 2, 3, 24
_first_contacts = jax.jit(first_contacts)


def random_traffic(rng, lattice):
    """Egos and tracks that cross each other's way; on the lattice they often touch exactly."""
    steps = np.arange(51) * 0.1
    unit = 0.25 if lattice else 1.0
    headings = rng.uniform(0, 7, 9)
    turn = QUARTERS if lattice else np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    ego_way, track_way = turn[rng.integers(len(turn), size=(S, G))], turn[rng.integers(len(turn), size=(S, A))]
    ego_speed = rng.integers(0, 5, (S, G)) * 2.5
    ego_start = unit * rng.integers(-20, 21, (S, G, 2))
    ego_xy = ego_start[:, :, None] + (ego_speed[..., None] * steps[:41])[..., None] * ego_way[:, :, None]
    speed = np.repeat(ego_speed[..., None], 41, axis=2)
    half = rng.integers(1, 9, (2, S, A)) / 4
    track_speed = rng.integers(0, 3, (S, A)) * 2.5
    # Some start where they touch the first ego's front or side.
    start = unit * rng.integers(-24, 25, (S, A, 2)) + np.where(rng.random((S, A, 1)) < 0.5, 0, ego_start[:, :1])
    if lattice:
        start[:, 0, 0] = ego_start[:, 0, 0] + np.abs(ego_way[:, 0, 0]) * HALF_LENGTH_M + half[0, :, 0]
        start[:, 0, 0] += np.abs(ego_way[:, 0, 1]) * HALF_WIDTH_M
        track_way[:, 0], track_speed[:, 0] = [1, 0], 0
    xy = start + (track_speed * steps[:, None, None])[..., None] * track_way
    xy[rng.random((51, S, A)) < 0.2] = ABSENT_M
    track_way = np.broadcast_to(track_way, xy.shape)
    ego = Boxes(ego_xy[..., 0], ego_xy[..., 1], *np.moveaxis(np.repeat(ego_way[:, :, None], 41, axis=2), -1, 0))
    boxes = Boxes(xy[..., 0], xy[..., 1], track_way[..., 0], track_way[..., 1])
    stopped = static = np.zeros((S, A), bool)
    return ego, speed, rng.random((S, G, 41)) < 0.3, Agents(boxes, half[0], half[1], stopped, static)


def slow_first_contacts(ego, speed, stands, agents):
    """Every pair at every step, by shapely on the corners."""

    def polygons(boxes, half_length, half_width):
        shape = np.stack([np.stack(corner, axis=-1) for corner in corners(boxes, half_length, half_width)], axis=-2)
        return shapely.polygons(shape.astype(np.float64))

    collision, projected = np.full((2, *speed.shape[:2], agents.static.shape[1]), NEVER)
    for step in reversed(range(41)):
        for f, ahead in reversed(list(enumerate(PROJECTED_STEPS))):
            box = Boxes(*(v[:, :, step] for v in ego))
            way = speed[:, :, step] * speed.dtype.type(ahead * 0.1)
            box = box._replace(x=box.x + way * box.cos, y=box.y + way * box.sin)
            own = polygons(box, speed.dtype.type(HALF_LENGTH_M), speed.dtype.type(HALF_WIDTH_M))
            others = polygons(Boxes(*(v[step + ahead] for v in agents.boxes)), agents.half_length, agents.half_width)
            meets = shapely.intersects(own[..., None], others[:, None])
            projected[meets & ~stands[:, :, step, None]] = step * len(PROJECTED_STEPS) + f
            if f == 0:
                collision[meets] = step
    return collision, projected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lattice", [False, True], ids=["anywhere", "lattice"])
@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_first_contacts_are_those_of_the_obvious_loop(dtype, lattice, seed):
    traffic = random_traffic(np.random.default_rng(seed), lattice)
    traffic = jax.tree.map(lambda v: v if v.dtype == bool else v.astype(dtype), traffic)
    with jax.enable_x64(dtype == "float64"):
        found = _first_contacts(*traffic)
    expected = slow_first_contacts(*traffic)
    np.testing.assert_array_equal(found.collision, expected[0])
    np.testing.assert_array_equal(found.projected, expected[1])


@pytest.fixture
def alone():
    """Egos along the x axis and tracks, rows of x, y and half sizes, that neither move nor turn; all scenes alike."""

    def build(ego_x, tracks, *, speed=0.0, stands=(), dtype="float64", absent=()):
        tracks = np.array(tracks + [[500.0, 0, 1, 1]] * (A - len(tracks)), float)
        zeros = np.zeros((S, G, 41))
        xy = np.broadcast_to(tracks[:, :2], (51, S, A, 2)).copy()
        xy[list(absent)] = ABSENT_M
        standing = np.zeros((S, G, 41), bool)
        standing[..., list(stands)] = True
        flags = np.zeros((S, A), bool)
        boxes = Boxes(xy[..., 0], xy[..., 1], np.ones(xy.shape[:-1]), np.zeros(xy.shape[:-1]))
        ego = Boxes(zeros + ego_x, zeros, zeros + 1, zeros)
        half_length, half_width = np.repeat(tracks.T[2:, None], S, axis=1)
        parts = (ego, zeros + speed, standing, Agents(boxes, half_length, half_width, flags, flags))
        return jax.tree.map(lambda v: v if v.dtype == bool else v.astype(dtype), parts)

    return build


@pytest.fixture
def contacts(alone):
    """First contacts, now and projected, of such an ego with the first two tracks."""

    def run(*args, **options):
        with jax.enable_x64(True):
            return tuple(np.asarray(v)[0, 0, :2].tolist() for v in _first_contacts(*alone(*args, **options)))

    return run


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_touching_tracks_than_are_settled_at_once(alone, dtype):
    # The ego drives an eighth of a metre a step towards tracks an eighth apart: it touches all of them exactly,
    # or would but for the last digit, in 6 groups of 24.
    tracks = [[HALF_LENGTH_M + 0.5 + i / 8, 0, 0.5, 0.5] for i in range(A)]
    traffic = alone(np.arange(41) / 8, tracks, dtype=dtype, speed=1.25)
    expected = slow_first_contacts(*traffic)
    assert (expected[0] != NEVER).all()
    with jax.enable_x64(dtype == "float64"):
        found = _first_contacts(*traffic)
    np.testing.assert_array_equal(found.collision, expected[0])
    np.testing.assert_array_equal(found.projected, expected[1])


def test_a_projection_looks_ahead_at_the_egos_speed(contacts):
    # 10 m/s: the front is at 2.588 + 3, 6 and 9 m after 0.3, 0.6 and 0.9 s.
    collision, projected = contacts(0.0, [[2.588 + 2.5 + 3.1, 0, 2.5, 1], [2.588 + 9.5, 0, 0.4, 1]], speed=10.0)
    assert collision == [NEVER, NEVER]
    assert projected == [2, NEVER]


def test_steps_at_which_the_ego_stands_do_not_count_for_projections(contacts):
    collision, projected = contacts(0.0, [[3.0, 0, 1, 1]], stands=range(7))
    assert collision == [0, NEVER]
    assert projected == [7 * 4, NEVER]


def test_absent_tracks_are_not_touched(contacts):
    collision, projected = contacts(0.0, [[3.0, 0, 1, 1]], absent=range(12))
    assert collision == [12, NEVER]
    assert projected == [3 * 4 + 3, NEVER]  # At 0.3 s, 0.9 s ahead.


def test_no_tracks_no_contacts():
    nothing = np.zeros((1, 0))
    boxes = Boxes(*np.zeros((4, 51, 1, 0)))
    ego = Boxes(*np.zeros((4, 1, 2, 41)))
    agents = Agents(boxes, nothing, nothing, nothing.astype(bool), nothing.astype(bool))
    found = jax.eval_shape(first_contacts, ego, np.zeros((1, 2, 41)), np.zeros((1, 2, 41), bool), agents)
    assert found.collision.shape == found.projected.shape == (1, 2, 0)
