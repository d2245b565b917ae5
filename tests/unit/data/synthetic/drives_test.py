import numpy as np
import pytest
import shapely

from recogdrive.data.synthetic import drives as module
from recogdrive.data.synthetic import expert
from recogdrive.data.synthetic.drives import FRAMES, LAYOUTS, RECORDED, TIMES_S, draw_drive
from recogdrive.data.types import AgentClass, MapLayer
from recogdrive.geometry import box_corners


def test_frames_are_the_2_hz_times_from_minus_one_and_a_half_to_five_seconds():
    np.testing.assert_allclose(TIMES_S[FRAMES], np.arange(-3, 11) * 0.5, atol=1e-12)
    assert TIMES_S[RECORDED][0] == pytest.approx(-1.5)


def test_the_ego_is_where_its_velocity_takes_it(drives):
    for drive in drives:
        poses = drive.ego.poses[RECORDED]
        heading, speed = poses[:, 2], drive.ego.velocity[RECORDED, 0]
        mean = (speed[1:] + speed[:-1]) / 2
        middle = (heading[1:] + heading[:-1]) / 2
        expected = 0.1 * mean[:, None] * np.stack([np.cos(middle), np.sin(middle)], -1)
        np.testing.assert_allclose(np.diff(poses[:, :2], axis=0), expected, atol=0.006)


def test_acceleration_is_the_difference_of_velocities_along_and_of_headings_across(drives):
    for drive in drives:
        speed, a = drive.ego.velocity[RECORDED, 0], drive.ego.acceleration[RECORDED]
        np.testing.assert_allclose(np.gradient(speed, 0.1)[1:-1], a[1:-1, 0], atol=1e-9)
        yaw_rate = np.gradient(drive.ego.poses[RECORDED, 2], 0.1)
        np.testing.assert_allclose((speed * yaw_rate)[1:-1], a[1:-1, 1], atol=1e-9)


def test_the_expert_is_comfortable(drives):
    for drive in drives:
        a = drive.ego.acceleration[RECORDED]
        assert a[:, 0].min() >= -expert.HARDEST_BRAKING_MPS2
        assert a[:, 0].max() < 2.4  # the bound of PDM's comfort
        assert np.abs(a[:, 1]).max() < 3.2


def test_the_ego_stays_near_its_lane_centre(drives):
    for drive in drives:
        center = drive.tables.at(drive.tables.poses, np.array(0), drive.ego.s_m)
        assert np.linalg.norm(drive.ego.poses[:, :2] - center[:, :2], axis=1).max() <= 0.4 + 1e-9


def test_no_vehicle_crosses_a_stop_line_at_red_unless_it_could_not_stop(drives):
    lights_seen = 0
    for drive in drives:
        for line in drive.layout.stop_lines:
            if line.crosswalk is not None or line.connector not in drive.route.elements:
                continue
            lights_seen += 1
            at = drive.tables.starts[0][drive.route.elements.index(line.connector)] + line.at_m
            front = drive.ego.s_m[RECORDED] + 4.049
            red = drive.lights.is_red(line.connector)[RECORDED]
            crossed = np.flatnonzero((front[:-1] < at) & (front[1:] >= at))
            assert not red[crossed].any()
    assert lights_seen > 10


def test_vehicles_keep_to_their_side_and_do_not_touch_each_other(drives):
    for drive in drives:
        objects = drive.objects
        for step in range(10, len(TIMES_S), 10):
            moving = (objects.classes == AgentClass.VEHICLE) & objects.present[step]
            poses, size = objects.poses[step, moving], objects.size_m[moving]
            boxes = shapely.polygons(box_corners(poses, size[:, 0], size[:, 1]))
            first, second = shapely.STRtree(boxes).query(boxes, predicate="intersects")
            assert (first == second).all()


def test_few_drives_have_to_be_drawn_again(drives):
    assert np.mean([drive.attempts for drive in drives]) < 1.2


def test_equal_generators_give_equal_drives():
    for kind in LAYOUTS:
        first, second = (draw_drive(kind, np.random.default_rng(4)) for _ in range(2))
        np.testing.assert_array_equal(first.ego.poses, second.ego.poses)
        np.testing.assert_array_equal(first.objects.poses, second.objects.poses)


def test_a_drive_with_a_flaw_is_drawn_again(monkeypatch):
    found = iter(["collision", "collision", None])
    monkeypatch.setattr(expert, "flaw", lambda *_: next(found))
    assert draw_drive("straight", np.random.default_rng(0)).attempts == 3


def test_a_drive_that_the_score_would_not_like_is_drawn_again(monkeypatch):
    found = iter(["off the drivable area when steered", None])
    monkeypatch.setattr(expert, "flaw", lambda *_: None)
    monkeypatch.setattr(expert, "steered_flaw", lambda *_: next(found))
    assert draw_drive("straight", np.random.default_rng(0)).attempts == 2


def test_the_steered_car_starts_now_and_may_use_shoulders(monkeypatch):
    seen = []
    monkeypatch.setattr(expert, "steered_flaw", lambda *arguments: seen.append(arguments))
    drive = draw_drive("merge", np.random.default_rng(1))
    ego, _, drivable, now = seen[-1]
    np.testing.assert_array_equal(ego.poses[now], drive.ego.poses[FRAMES][3])
    layers = [e.layer for e in drive.layout.elements]
    wanted = (MapLayer.ROADBLOCK, MapLayer.INTERSECTION, MapLayer.CARPARK_AREA, MapLayer.GENERIC_DRIVABLE_AREA)
    assert len(drivable) == sum(layer in wanted for layer in layers)
    assert MapLayer.GENERIC_DRIVABLE_AREA in layers


def test_without_a_clean_drive_the_error_names_the_road_and_the_flaws(monkeypatch):
    monkeypatch.setattr(expert, "flaw", lambda *_: "collision")
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 3)
    with pytest.raises(RuntimeError, match=r"'curve' road in 3 attempts.*collision"):
        draw_drive("curve", np.random.default_rng(0))
