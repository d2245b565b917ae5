"""Tests of pdm/validation.py."""

import dataclasses

import numpy as np
import pytest

from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import PolygonLayer
from recogdrive.pdm.validation import GEOMETRY, validate


@pytest.fixture
def refuses(road_scene):
    """Checks that the road scene with some fields changed is refused with a message that fits."""

    def check(match: str, **changes) -> None:
        with pytest.raises(SceneError, match=match):
            validate(dataclasses.replace(road_scene, **changes))

    return check


def _changed(array: np.ndarray, where, value) -> np.ndarray:
    array = array.copy()
    array[where] = value
    return array


def test_an_ordinary_scene_has_no_warnings(road_scene):
    assert validate(road_scene) == ()


def test_a_scene_in_float64_is_ordinary(road_scene):
    wide = {name: getattr(road_scene, name).astype(np.float64) for name in GEOMETRY}
    assert validate(dataclasses.replace(road_scene, **wide)) == ()


def _with_agents(scene, count):
    return dataclasses.replace(
        scene,
        agent_poses=np.zeros((51, count, 3), dtype=np.float32),
        agent_valid=np.ones((51, count), dtype=bool),
        agent_sizes=np.ones((count, 2), dtype=np.float32),
        agent_speeds=np.zeros(count),
        agent_types=np.zeros(count, dtype=np.int8),
    )


@pytest.mark.parametrize("count", [0, 1000])
def test_no_agents_and_a_thousand_agents_are_ordinary(road_scene, count):
    assert validate(_with_agents(road_scene, count)) == ()


def test_a_scene_without_drivable_polygon_is_warned_of(road_scene):
    lanes = np.full(3, PolygonLayer.LANE, dtype=np.int8)
    (warning,) = validate(dataclasses.replace(road_scene, polygon_layers=lanes))
    assert "off the drivable area" in warning


def test_a_scene_without_lane_on_the_route_is_warned_of(road_scene):
    (warning,) = validate(dataclasses.replace(road_scene, polygon_on_route=np.zeros(3, dtype=bool)))
    assert "against the direction" in warning


def test_a_route_flag_of_another_polygon_is_no_lane_on_the_route(road_scene):
    (warning,) = validate(dataclasses.replace(road_scene, polygon_on_route=np.array([False, True, True])))
    assert "against the direction" in warning


def test_a_scene_without_any_polygon_is_warned_of_twice(road_scene):
    bare = dataclasses.replace(
        road_scene,
        vertices=np.zeros((0, 2), dtype=np.float32),
        ring_offsets=np.zeros(1, dtype=np.int32),
        polygon_offsets=np.zeros(1, dtype=np.int32),
        polygon_layers=np.zeros(0, dtype=np.int8),
        polygon_on_route=np.zeros(0, dtype=bool),
    )
    assert len(validate(bare)) == 2


def test_unknown_human_poses_are_ordinary_but_infinite_ones_are_not(road_scene, refuses):
    assert validate(road_scene) == ()
    refuses("scene road: human_poses is infinite", human_poses=np.full((8, 3), np.inf, dtype=np.float32))


def test_an_empty_token_is_refused(refuses):
    refuses("token='' must be a non-empty string", token="")


@pytest.mark.parametrize("missing", [None, np.zeros((0, 3), dtype=np.float32)])
def test_a_missing_normaliser_is_refused(refuses, missing):
    refuses("scene road: normaliser_poses is missing; .*51 poses", normaliser_poses=missing)


def test_what_is_not_an_array_is_refused(refuses):
    refuses("centerline is a list; give a NumPy array", centerline=[[0, 0], [1, 0]])


def test_a_wrong_number_of_columns_is_refused(refuses):
    refuses(r"centerline is of shape \(4, 3\); give \(C, 2\)", centerline=np.zeros((4, 3), dtype=np.float32))


def test_arrays_that_disagree_on_the_number_of_agents_are_refused(refuses):
    refuses(r"agent_speeds is of shape \(3,\); give \(A\) with A=2 in agent_poses", agent_speeds=np.zeros(3))


def test_arrays_that_disagree_on_the_number_of_polygons_are_refused(refuses):
    refuses(r"polygon_on_route is of shape \(2,\).*P=3 in polygon_layers", polygon_on_route=np.zeros(2, dtype=bool))


@pytest.mark.parametrize(("field", "shape"), [("agent_poses", (41, 2, 3)), ("normaliser_poses", (8, 3))])
def test_a_wrong_number_of_steps_is_refused(refuses, field, shape):
    refuses(f"{field} is {shape[0]} steps long; give 51", **{field: np.ones(shape, dtype=np.float32)})


def test_a_wrong_number_of_human_poses_is_refused(refuses):
    refuses(r"human_poses is of shape \(10, 3\); give \(8, 3\)", human_poses=np.zeros((10, 3), dtype=np.float32))


@pytest.mark.parametrize(
    ("field", "dtype", "wanted"),
    [
        ("agent_valid", np.int8, "bool"),
        ("agent_types", np.float32, "an integer dtype"),
        ("ring_offsets", np.float64, "an integer dtype"),
        ("vertices", np.float16, "float32 or float64"),
        ("origin", np.float32, "float64"),
        ("ego_state", np.float32, "float64"),
    ],
)
def test_a_wrong_dtype_is_refused(road_scene, refuses, field, dtype, wanted):
    refuses(
        f"{field} is of dtype {np.dtype(dtype)}; give {wanted}", **{field: getattr(road_scene, field).astype(dtype)}
    )


def test_geometry_of_two_dtypes_is_refused(road_scene, refuses):
    refuses("vertices is of dtype float64; agent_poses is float32", vertices=road_scene.vertices.astype(np.float64))


@pytest.mark.parametrize(
    ("field", "where", "shown"),
    [
        ("ego_state", (3,), r"ego_state\[3\]"),
        ("agent_poses", (50, 1, 2), r"agent_poses\[50, 1, 2\]"),
        ("agent_sizes", (1, 0), r"agent_sizes\[1, 0\]"),
        ("agent_speeds", (0,), r"agent_speeds\[0\]"),
        ("vertices", (14, 1), r"vertices\[14, 1\]"),
        ("centerline", (0, 0), r"centerline\[0, 0\]"),
        ("normaliser_poses", (7, 1), r"normaliser_poses\[7, 1\]"),
        ("origin", (2,), r"origin\[2\]"),
    ],
)
def test_numbers_that_are_not_finite_are_named_with_their_place(road_scene, refuses, field, where, shown):
    array = getattr(road_scene, field)
    refuses(f"scene road: {shown} is nan; give finite", **{field: _changed(array, where, np.nan)})
    refuses(f"scene road: {shown} is inf; give finite", **{field: _changed(array, where, np.inf)})


@pytest.mark.parametrize("size", [0.0, -1.0])
def test_a_size_that_is_not_positive_is_refused(road_scene, refuses, size):
    refuses("agent_sizes is .* for track 1; give positive", agent_sizes=_changed(road_scene.agent_sizes, (1, 1), size))


def test_a_negative_speed_is_refused(road_scene, refuses):
    refuses("agent_speeds is -1.0 m/s for track 1", agent_speeds=_changed(road_scene.agent_speeds, 1, -1.0))


@pytest.mark.parametrize("number", [-1, 7])
def test_an_unknown_agent_class_is_refused(road_scene, refuses, number):
    refuses(rf"agent_types\[1\] is {number}, unknown", agent_types=_changed(road_scene.agent_types, 1, number))


@pytest.mark.parametrize("number", [-1, 6])
def test_an_unknown_layer_is_refused(road_scene, refuses, number):
    refuses(rf"polygon_layers\[2\] is {number}, unknown", polygon_layers=_changed(road_scene.polygon_layers, 2, number))


def test_a_ring_of_two_vertices_is_refused(refuses):
    offsets = np.array([0, 4, 8, 13, 15], dtype=np.int32)
    refuses("ring_offsets is giving ring 3 2 vertices; a ring has at least 3", ring_offsets=offsets)


@pytest.mark.parametrize("offsets", [[0, 8, 4, 12, 15], [0, 4, 4, 12, 15]])
def test_ring_offsets_that_do_not_increase_are_refused(refuses, offsets):
    match = f"ring_offsets is not increasing: {offsets[1]} is followed by 4 at 2"
    refuses(match, ring_offsets=np.array(offsets, dtype=np.int32))


def test_a_polygon_without_ring_is_refused(refuses):
    refuses("polygon_offsets is not increasing", polygon_offsets=np.array([0, 1, 1, 4], dtype=np.int32))


@pytest.mark.parametrize("offsets", [[0, 4, 8, 11, 14], [0, 4, 8, 12, 16]])
def test_ring_offsets_that_end_elsewhere_than_the_vertices_are_refused(refuses, offsets):
    refuses("end with 15", ring_offsets=np.array(offsets, dtype=np.int32))


def test_offsets_that_do_not_start_with_zero_are_refused(refuses):
    refuses(r"polygon_offsets is starting with \[1\]", polygon_offsets=np.array([1, 2, 3, 4], dtype=np.int32))


def test_polygon_offsets_of_another_number_of_polygons_are_refused(refuses):
    refuses("polygon_offsets is 3 entries long; give 4", polygon_offsets=np.array([0, 1, 4], dtype=np.int32))


@pytest.mark.parametrize("count", [0, 1])
def test_a_centre_line_of_one_point_or_none_is_refused(refuses, count):
    refuses(rf"centerline is {count} point\(s\) long", centerline=np.zeros((count, 2), dtype=np.float32))


def test_a_centre_line_of_one_repeated_point_is_refused(refuses):
    line = np.full((3, 2), 4.0, dtype=np.float32)
    refuses(r"centerline is 3 times the point \[4.0, 4.0\]", centerline=line)
