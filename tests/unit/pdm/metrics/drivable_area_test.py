"""Which areas a footprint is on, and the drivable-area score (sections 8 and 11)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.batch import pad_scenes
from recogdrive.pdm.footprint import centers, corners
from recogdrive.pdm.metrics.drivable_area import Areas, areas, drivable_area
from recogdrive.pdm.scene import PolygonLayer

_areas = jax.jit(lambda maps, poses: areas(maps, poses[..., :2], centers(poses), corners(poses)))
LANE, CONNECTOR, INTERSECTION, DRIVABLE, ROADBLOCK, CAR_PARK = PolygonLayer


def box(x, y, length, width):
    return [[x, y], [x + length, y], [x + length, y + width], [x, y + width]]


@pytest.fixture
def standing(road_scene):
    """Areas of an ego whose rear axle stays at the origin and looks along x, on a map of (layer, ring[, on route])."""

    def run(*polygons, pose=(0.0, 0.0, 0.0)):
        rings = [np.array(polygon[1], np.float32) for polygon in polygons]
        scene = dataclasses.replace(
            road_scene,
            vertices=np.concatenate(rings),
            ring_offsets=np.cumsum([0, *map(len, rings)]).astype(np.int32),
            polygon_offsets=np.arange(len(rings) + 1, dtype=np.int32),
            polygon_layers=np.array([polygon[0] for polygon in polygons], np.int8),
            polygon_on_route=np.array([len(polygon) > 2 for polygon in polygons]),
        )
        maps = pad_scenes([scene], dtype=np.float32).maps
        found = _areas(maps, jnp.broadcast_to(jnp.array(pose, jnp.float32), (1, 1, 41, 3)))
        return Areas(*(np.asarray(v)[0, 0, 0] for v in found))

    return run


# The footprint: x from -1.127 to 4.049, y within 1.1485 of 0; its centre at x = 1.461.
AROUND = box(-10, -5, 30, 10)
LEFT, RIGHT = box(-10, 0.5, 30, 4.5), box(-10, -5, 30, 5.5)


def test_on_one_lane_on_its_road_nothing_is_amiss(standing):
    found = standing((LANE, AROUND, "route"), (ROADBLOCK, AROUND))
    assert not found.several_lanes
    assert not found.off_road
    assert not found.oncoming
    assert not found.intersection


def test_astride_of_two_lanes_is_on_several(standing):
    assert standing((LANE, LEFT), (CONNECTOR, RIGHT)).several_lanes


def test_a_lane_that_holds_all_corners_excuses_others(standing):
    assert not standing((LANE, LEFT), (LANE, RIGHT), (CONNECTOR, AROUND)).several_lanes


def test_corners_on_one_lane_and_on_none_are_not_on_several(standing):
    assert not standing((LANE, LEFT), (ROADBLOCK, RIGHT)).several_lanes


def test_no_corner_on_any_lane_is_not_on_several(standing):
    assert not standing((LANE, box(50, 0, 9, 9)), (LANE, box(50, 0, 9, 8))).several_lanes


def test_the_number_of_lanes_is_counted_over_all_corners(standing):
    front, rear = box(1, -5, 20, 10), box(-10, -5, 11, 10)
    assert standing((LANE, front), (LANE, rear)).several_lanes


@pytest.mark.parametrize("layer", [INTERSECTION, DRIVABLE, ROADBLOCK, CAR_PARK])
def test_these_layers_can_be_driven_on(standing, layer):
    assert not standing((layer, AROUND)).off_road


@pytest.mark.parametrize("layer", [LANE, CONNECTOR])
def test_lanes_alone_are_no_road(standing, layer):
    assert standing((layer, AROUND, "route")).corner_off.tolist() == [True] * 4


def test_corners_may_stand_on_different_polygons(standing):
    assert not standing((ROADBLOCK, LEFT), (CAR_PARK, RIGHT)).off_road


def test_the_corner_that_is_off_is_named(standing):
    # Front left, rear left, rear right, front right; all but the left front of the road.
    road = [[-10, -5], [20, -5], [20, 0], [2, 0], [2, 5], [-10, 5]]
    assert standing((ROADBLOCK, road)).corner_off.tolist() == [True, False, False, False]


def test_a_corner_on_the_border_is_off(standing):
    y = float(np.float32(1.1485))
    assert standing((ROADBLOCK, box(-10, -5, 30, 5 + y))).corner_off[:2].tolist() == [True, True]


def test_the_centre_decides_about_oncoming(standing):
    ahead_of_center, behind_center = box(1.5, -5, 9, 10), box(-10, -5, 11.4, 10)
    assert standing((LANE, ahead_of_center, "route"), (LANE, behind_center)).oncoming
    assert not standing((LANE, box(1.4, -5, 9, 10), "route")).oncoming


def test_an_intersection_does_not_excuse_leaving_the_route(standing):
    found = standing((INTERSECTION, AROUND), (LANE, AROUND))
    assert found.oncoming
    assert found.intersection


def test_the_rear_axle_decides_about_the_intersection(standing):
    assert not standing((INTERSECTION, box(0.1, -5, 9, 10))).intersection
    assert standing((INTERSECTION, box(-0.1, -5, 0.2, 10))).intersection


def test_the_heading_turns_the_footprint(standing):
    across = (0.0, 0.0, np.pi / 2)
    assert standing((ROADBLOCK, box(-1.2, -1.2, 2.4, 5.3)), pose=across).corner_off.tolist() == [False] * 4
    assert standing((ROADBLOCK, box(-1.2, -1.2, 2.4, 5.2)), pose=across).corner_off.tolist() == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    "off, expected",
    [
        ({}, (1.0, -1, -1)),
        ({40: [3]}, (0.0, 40, 3)),
        ({5: [2, 3], 6: [0]}, (0.0, 5, 2)),
        ({0: [1], 5: [0]}, (0.0, 0, 1)),
    ],
)
def test_the_first_corner_off_the_road_decides_and_is_named(off, expected):
    corner_off = np.zeros((1, 1, 41, 4), bool)
    for step, which in off.items():
        corner_off[0, 0, step, which] = True
    nowhere = np.zeros((1, 1, 41), bool)
    found = drivable_area(Areas(nowhere, jnp.array(corner_off), nowhere, nowhere, nowhere), jnp.float32)
    assert tuple(v.item() for v in found) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_score_has_the_dtype_asked_for(dtype):
    with jax.enable_x64(True):
        flags = jax.ShapeDtypeStruct((1, 1, 41), bool)
        corner_off = jax.ShapeDtypeStruct((1, 1, 41, 4), bool)
        shapes = jax.eval_shape(lambda *a: drivable_area(Areas(*a), np.dtype(dtype)), flags, corner_off, *[flags] * 3)
    assert shapes[0].dtype == dtype
