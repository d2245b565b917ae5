"""Pictures drawn from scenes: what is where, how large, in which colour."""

import dataclasses
import hashlib

import numpy as np
import pytest

from recogdrive.data.synthetic import camera_shapes
from recogdrive.data.synthetic.camera import DRAWING_VERSION, NEAR_M, Pinhole, clip_near, render
from recogdrive.data.types import AgentClass, Detections, EgoStatus, MapElement, MapLayer, MapPatch, Scene

CAMERA = Pinhole(480, 270, 90.0)
HORIZON_ROW = 0.44 * 270


def lane(number=1, layer=MapLayer.LANE, begin=-40.0, end=60.0, right=-1.75, left=1.75, **more):
    """A straight lane along x."""
    sides = [np.array([[begin, y], [end, y]]) for y in (right, left)]
    centerline = np.array([[begin, (left + right) / 2, 0.0], [end, (left + right) / 2, 0.0]])
    return MapElement(
        id=str(number),
        layer=layer,
        polygon=np.concatenate([sides[0], sides[1][::-1]]),
        centerline=centerline,
        left_boundary=sides[1],
        right_boundary=sides[0],
        roadblock_id="9",
        **more,
    )


def signal(number, **more):
    """A connector with a light 20 m ahead."""
    return lane(number, MapLayer.LANE_CONNECTOR, 20.0, 40.0, has_traffic_light=True, predecessors=("1",), **more)


def scene_of(boxes=(), classes=(AgentClass.VEHICLE,), elements=(), red=()):
    """A standing ego on the x axis; boxes are (x, y, length, width, height, heading)."""
    rows = np.array([[x, y, h / 2, length, w, h, heading] for x, y, length, w, h, heading in boxes]).reshape(-1, 7)
    kinds = np.array((list(classes) * len(rows))[: len(rows)], dtype=np.int8)
    detections = Detections(rows, kinds, np.zeros((len(rows), 2)), tuple(f"track{k}" for k in range(len(rows))))
    ego = EgoStatus(np.zeros((4, 3)), np.zeros((4, 2)), np.zeros((4, 2)), np.eye(4)[[1] * 4])
    return Scene(
        token="0123456789abcdef",
        log_name="drawn",
        map_name="drawn",
        timestamp_us=0,
        origin=np.zeros(3),
        ego=ego,
        future=None,
        detections=(detections,) * 4,
        map=MapPatch(100.0, tuple(elements)),
        red_light_connectors=frozenset(red),
    )


def pixels_of(scene):
    return np.asarray(render(scene, CAMERA)).astype(int)


def changed(box, agent_class=AgentClass.VEHICLE):
    """Rows and columns at which a box is seen."""
    with_it, without = pixels_of(scene_of([box], [agent_class])), pixels_of(scene_of())
    return np.nonzero((with_it != without).any(axis=-1))


def near_color(pixels, color):
    """Where pixels have a colour, up to what averaging at edges changes."""
    return (np.abs(pixels - np.array(color)) <= 8).all(axis=-1)


CAR = (4.5, 1.9, 1.6, 0.0)


def test_an_object_ahead_appears_in_the_middle():
    _, columns = changed((20.0, 0.0, *CAR))
    assert abs((columns.min() + columns.max() + 1) / 2 - 240) <= 1


def test_an_object_to_the_left_appears_in_the_left_half():
    _, columns = changed((20.0, 6.0, *CAR))
    assert columns.max() < 240


def test_an_object_to_the_right_appears_in_the_right_half():
    _, columns = changed((20.0, -6.0, *CAR))
    assert columns.min() > 240


def test_a_nearer_object_is_larger_and_stands_lower():
    near, far = changed((12.0, 0.0, *CAR)), changed((30.0, 0.0, *CAR))
    assert len(near[0]) > 4 * len(far[0])
    assert near[0].max() > far[0].max() > HORIZON_ROW


def test_sizes_follow_the_pinhole():
    """The rear face, 1.9 m wide and 1.6 m high, stands 15 m before the eye; the focal length is 240 pixels."""
    rows, columns = changed((1.5 + 15.0 + 2.25, 0.0, *CAR))
    shadow_m = 0.15
    assert columns.max() + 1 - columns.min() == pytest.approx(240 * (1.9 + 2 * shadow_m) / (15.0 - shadow_m), abs=1.5)
    assert rows.min() == pytest.approx(HORIZON_ROW - 240 * (1.6 - 1.5) / 15.0, abs=1.0)


def test_objects_behind_the_camera_are_not_drawn():
    assert len(changed((-15.0, 0.0, *CAR))[0]) == 0


def test_objects_beside_the_picture_are_not_drawn():
    assert len(changed((5.0, 30.0, *CAR))[0]) == 0


def test_a_nearer_object_hides_a_farther_one_whatever_their_order():
    near, far = (10.0, 0.0, 4.5, 2.2, 3.0, 0.0), (25.0, 0.0, 1.0, 1.0, 1.0, 0.0)
    kinds = (AgentClass.VEHICLE, AgentClass.PEDESTRIAN)
    alone = pixels_of(scene_of([near]))
    np.testing.assert_array_equal(pixels_of(scene_of([near, far], kinds)), alone)
    np.testing.assert_array_equal(pixels_of(scene_of([far, near], kinds[::-1])), alone)


def test_an_object_across_the_near_plane_is_cut_not_mirrored():
    """A wall of 10 m on the left that begins behind the eye stays on the left."""
    rows, columns = changed((3.0, 3.0, 10.0, 0.5, 2.5, 0.0))
    assert len(rows) > 0
    assert columns.max() < 240
    assert columns.min() == 0


@pytest.mark.parametrize("agent_class", list(AgentClass))
def test_every_class_has_its_colour(agent_class):
    """The rear of a box is drawn in its class's colour at 0.92 of the light."""
    pixels = pixels_of(scene_of([(8.0, 0.0, 1.0, 1.0, 2.5, 0.0)], [agent_class]))
    color = [min(255, round(0.92 * c)) for c in camera_shapes.AGENT_COLORS[agent_class]]
    assert near_color(pixels, color).sum() > 100


def test_a_red_light_shows_red_and_no_green():
    pixels = pixels_of(scene_of(elements=[lane(), signal(5)], red=["5"]))
    above = np.arange(270)[:, None] < HORIZON_ROW
    assert (near_color(pixels, camera_shapes.RED) & above).any()
    assert (near_color(pixels, camera_shapes.RED) & ~above).any(), "no bar at the stop line"
    assert not near_color(pixels, camera_shapes.GREEN).any()


def test_a_green_light_shows_green_and_no_red():
    pixels = pixels_of(scene_of(elements=[lane(), signal(5)]))
    assert near_color(pixels, camera_shapes.GREEN).any()
    assert not near_color(pixels, camera_shapes.RED).any()


def test_the_light_of_the_left_turn_is_left_of_the_one_for_straight_on():
    straight = signal(5)
    turn = np.array([[20.0, 0.0, 0.0], [30.0, 3.0, 0.8], [33.0, 12.0, 1.57]])
    left = dataclasses.replace(signal(6), centerline=turn)
    pixels = pixels_of(scene_of(elements=[lane(), straight, left], red=["6"]))
    _, red = np.nonzero(near_color(pixels, camera_shapes.RED))
    _, green = np.nonzero(near_color(pixels, camera_shapes.GREEN))
    assert red.mean() < 240 < green.mean()


def test_a_light_that_is_passed_or_faces_another_way_is_not_drawn():
    passed = lane(5, MapLayer.LANE_CONNECTOR, -5.0, 15.0, has_traffic_light=True)
    across = dataclasses.replace(signal(6), centerline=np.array([[20.0, 0.0, 1.57], [20.0, 20.0, 1.57]]))
    pixels = pixels_of(scene_of(elements=[passed, across], red=["5", "6"]))
    assert not near_color(pixels, camera_shapes.RED).any()


def test_the_road_is_asphalt_with_a_yellow_line_left_and_a_white_one_right():
    pixels = pixels_of(scene_of(elements=[lane()]))
    assert near_color(pixels[-1, 235:245], camera_shapes.ASPHALT).all()
    row = pixels[220]
    (yellow,) = np.nonzero(near_color(row, camera_shapes.YELLOW))
    (white,) = np.nonzero(near_color(row, camera_shapes.WHITE))
    assert yellow.max() < 240 < white.min()


def test_lanes_of_one_direction_are_parted_by_dashes():
    beside = lane(2, right=-5.25, left=-1.75)
    pixels = pixels_of(scene_of(elements=[lane(), beside]))
    rows = np.arange(150, 260)
    # The border between the lanes is 1.75 m to the right of the eye at the depth that each row shows.
    columns = np.rint(240 + 1.75 / 1.5 * (rows + 0.5 - HORIZON_ROW)).astype(int)
    white = near_color(pixels[rows, columns], camera_shapes.WHITE)
    assert white.any()
    assert not white.all()


def test_a_crosswalk_is_striped():
    corners = np.array([[9.0, -4.0], [12.0, -4.0], [12.0, 4.0], [9.0, 4.0]])
    walk = MapElement("7", MapLayer.CROSSWALK, corners)
    row = near_color(pixels_of(scene_of(elements=[lane(), walk])), camera_shapes.WHITE)[160]
    assert np.count_nonzero(np.diff(row.astype(int)) == 1) >= 5


def test_the_picture_has_the_size_asked_for():
    assert render(scene_of(), Pinhole(64, 48, 60.0)).size == (64, 48)


def test_a_narrower_view_shows_things_larger():
    box = [(30.0, 0.0, *CAR)]
    sizes = []
    for fov in (60.0, 110.0):
        pair = [np.asarray(render(s, Pinhole(480, 270, fov))) for s in (scene_of(box), scene_of())]
        sizes.append(np.count_nonzero((pair[0] != pair[1]).any(axis=-1)))
    assert sizes[0] > 2 * sizes[1]


def test_cutting_at_the_near_plane_keeps_what_lies_ahead():
    square = np.array([[0.0, 1.0, 0.0], [4.0, 1.0, 0.0], [4.0, -1.0, 0.0], [0.0, -1.0, 0.0]])
    cut = clip_near(square)
    assert cut[:, 0].min() == NEAR_M
    assert cut[:, 0].max() == 4.0
    assert set(cut[:, 1].tolist()) == {-1.0, 1.0}
    assert len(clip_near(square - [10.0, 0.0, 0.0])) == 0


def test_the_drawing_has_not_changed_without_its_version():
    """A changed drawing makes other hidden states: raise DRAWING_VERSION, then enter the new digest here."""
    boxes = [(15.0, 1.0, *CAR), (8.0, -3.0, 0.7, 0.7, 1.7, 0.3)]
    classes = (AgentClass.VEHICLE, AgentClass.PEDESTRIAN)
    walk = MapElement("7", MapLayer.CROSSWALK, np.array([[21.0, -4.0], [24.0, -4.0], [24.0, 4.0], [21.0, 4.0]]))
    scene = scene_of(boxes, classes, [lane(), lane(2, right=-5.25, left=-1.75), signal(5), walk], red=["5"])
    digest = hashlib.sha256(render(scene, Pinhole(160, 90, 90.0)).tobytes()).hexdigest()[:16]
    assert {DRAWING_VERSION: digest} == {1: "5453d55391d5e7a2"}
