import multiprocessing
import pickle
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise

import gin
import numpy as np
import pytest
import shapely

from recogdrive.data.context import SceneTokens
from recogdrive.data.synthetic import expert
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.types import Box, Command, MapLayer
from recogdrive.data.vlm.cameras import TownCamera
from recogdrive.geometry import box_corners, from_frame, to_frame
from recogdrive.pdm.from_scene import pdm_scene
from recogdrive.pdm.scorer import PdmScorer

KINDS = ("straight", "curve", "intersection", "merge")


def arrays_of(scene):
    """Everything numeric of a scene, in one list."""
    found = [scene.origin, scene.ego.poses, scene.ego.velocity, scene.ego.acceleration, scene.ego.command, scene.future]
    for detections in scene.detections:
        found += [detections.boxes, detections.classes, detections.velocity]
    for element in scene.map.elements:
        found += [element.polygon] + ([] if element.centerline is None else [element.centerline])
    return found


def assert_equal_scenes(first, second):
    assert (first.token, first.roadblock_ids, first.metadata) == (second.token, second.roadblock_ids, second.metadata)
    assert [d.track_tokens for d in first.detections] == [d.track_tokens for d in second.detections]
    for a, b in zip(arrays_of(first), arrays_of(second), strict=True):
        np.testing.assert_array_equal(a, b)


def displacement(scene):
    """Distances of constant velocity from the expert at 0.5 ... 4 s."""
    velocity = scene.ego.velocity[-1].astype(np.float64)
    return np.linalg.norm(np.arange(1, 9)[:, None] * 0.5 * velocity - scene.future[:8, :2], axis=1)


def drivable(scene, *layers):
    return shapely.union_all([shapely.Polygon(e.polygon).buffer(1e-6) for e in scene.map.layer(*layers)])


def build(index):
    return SyntheticTown(num_scenes=8, seed=3)[index]


def test_a_scene_depends_on_seed_and_number_only():
    town = SyntheticTown(num_scenes=8, seed=3)
    shifted = SyntheticTown(num_scenes=4, seed=3, first_scene=4, name="other")
    for k in range(4):
        assert_equal_scenes(town[4 + k], shifted[k])


def test_threads_build_the_same_scenes():
    with ThreadPoolExecutor(4) as pool:
        for index, scene in enumerate(pool.map(SyntheticTown(num_scenes=8, seed=3).__getitem__, range(8))):
            assert_equal_scenes(scene, build(index))


@pytest.mark.heavy
def test_another_process_builds_the_same_scenes():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for index, scene in enumerate(pool.map(build, range(4))):
            assert_equal_scenes(scene, build(index))


def test_a_pickled_town_yields_the_same_scenes():
    town = SyntheticTown(num_scenes=8, seed=3)
    assert_equal_scenes(pickle.loads(pickle.dumps(town))[5], town[5])


def test_other_numbers_and_other_seeds_give_other_scenes():
    scenes = [SyntheticTown(num_scenes=9, seed=seed)[index] for seed in (0, 1) for index in (0, 4, 8)]
    ends = {tuple(scene.future[-1]) for scene in scenes}
    assert len(ends) == len({scene.token for scene in scenes}) == 6


def test_poses_and_shapes_are_those_of_the_records(scenes):
    for scene in scenes:
        np.testing.assert_array_equal(scene.ego.poses[-1], 0.0)
        shapes = [a.shape for a in (scene.ego.poses, scene.ego.velocity, scene.ego.acceleration, scene.ego.command)]
        assert shapes == [(4, 3), (4, 2), (4, 2), (4, 4)]
        assert (scene.ego.poses.dtype, scene.ego.velocity.dtype, scene.ego.command.dtype) == (
            np.float64,
            np.float32,
            np.float32,
        )
        assert (scene.future.shape, scene.future.dtype) == ((10, 3), np.float64)
        assert all(np.isfinite(a).all() for a in arrays_of(scene))


def test_every_frame_has_detections_with_unique_tracks(scenes):
    for scene in scenes:
        assert len(scene.detections) == 14
        for frame in scene.detections:
            count = len(frame.track_tokens)
            assert len(set(frame.track_tokens)) == count
            assert (frame.boxes.shape, frame.velocity.shape) == ((count, 7), (count, 2))
            assert (frame.classes.shape, frame.classes.dtype) == ((count,), np.int8)


def test_a_track_keeps_its_class_and_size_and_moves_with_its_velocity(scenes):
    for scene in scenes[:40]:
        for before, after in pairwise(scene.detections):
            for k, token in enumerate(before.track_tokens):
                if token not in after.track_tokens:
                    continue
                m = after.track_tokens.index(token)
                assert before.classes[k] == after.classes[m]
                size = slice(Box.LENGTH, Box.HEADING)
                np.testing.assert_array_equal(before.boxes[k, size], after.boxes[m, size])
                moved = after.boxes[m, :2] - before.boxes[k, :2]
                mean = (before.velocity[k] + after.velocity[m]) / 2 * 0.5
                # Speed and heading change within half a second; walkers start and stop at once.
                assert np.linalg.norm(moved - mean) < 0.9


def test_at_most_about_twenty_objects_are_around(scenes):
    counts = [len(scene.current_detections.classes) for scene in scenes]
    assert max(counts) <= 24
    assert 4 < np.mean(counts) < 16


def test_all_classes_of_objects_occur(scenes):
    seen = Counter(int(c) for scene in scenes for c in scene.current_detections.classes)
    assert set(seen) == set(range(7))


def test_one_command_is_given_at_every_history_frame(scenes):
    for scene in scenes:
        np.testing.assert_array_equal(scene.ego.command.sum(axis=1), 1.0)
        assert not scene.ego.command[:, Command.UNKNOWN].any()


def test_commands_follow_the_centre_line_of_the_route_as_the_map_draws_it(scenes):
    for scene in scenes[:80]:
        elements = {(e.layer, e.id): e for e in scene.map.elements}
        route = set(scene.roadblock_ids)
        found = []
        for lane in scene.map.layer(MapLayer.LANE, MapLayer.LANE_CONNECTOR):
            inside = shapely.Polygon(lane.polygon).contains(shapely.Point(0.0, 0.0))
            if inside and lane.roadblock_id in route:
                found.append(lane)
        commands = set()
        for lane in found:
            other = MapLayer.LANE_CONNECTOR if lane.layer == MapLayer.LANE else MapLayer.LANE
            following = [elements.get((other, i)) for i in lane.successors]
            for after in (e for e in following if e is not None and e.roadblock_id in route):
                line = np.concatenate([lane.centerline, after.centerline])
                ends = [elements.get((lane.layer, i)) for i in after.successors]
                line = np.concatenate([line, *(e.centerline for e in ends if e is not None)])
                commands.add(int(expert.driving_command(line, np.zeros(2))))
        if commands:
            assert int(scene.ego.command[-1].argmax()) in commands


def test_left_right_and_straight_are_all_commanded(scenes):
    counts = Counter(int(scene.ego.command[-1].argmax()) for scene in scenes)
    assert min(counts[c] for c in (Command.LEFT, Command.STRAIGHT, Command.RIGHT)) >= 8


def test_the_expert_stays_on_the_drivable_area_and_on_its_lanes(scenes):
    for scene in scenes:
        poses = np.concatenate([scene.ego.poses, scene.future])
        corners = expert.ego_corners(poses)
        ground = drivable(scene, MapLayer.ROADBLOCK, MapLayer.INTERSECTION)
        assert shapely.covers(ground, shapely.points(corners)).all(), scene.token
        lanes = drivable(scene, MapLayer.LANE, MapLayer.LANE_CONNECTOR, MapLayer.INTERSECTION)
        assert shapely.covers(lanes, shapely.polygons(corners)).all(), scene.token


def test_the_expert_touches_nothing(scenes):
    for scene in scenes:
        poses = np.concatenate([scene.ego.poses, scene.future])
        for pose, frame in zip(expert.ego_corners(poses), scene.detections, strict=True):
            boxes = box_corners(frame.boxes[:, [0, 1, 6]], frame.boxes[:, Box.LENGTH], frame.boxes[:, Box.WIDTH])
            assert not shapely.intersects(shapely.Polygon(pose), shapely.polygons(boxes)).any(), scene.token


@pytest.fixture(scope="module")
def expert_scores(scenes, pairs):
    """Of 48 scenes and of both frames of eight drives, one after the other: scored at once, compiled once."""
    some = scenes[:48] + [scene for earlier, later, _ in pairs for scene in (earlier, later)]
    driven = np.stack([scene.future[None, :8] for scene in some])
    return PdmScorer(dtype="float32").score([pdm_scene(scene) for scene in some], driven)


def test_the_pdm_score_finds_nothing_wrong_with_the_expert(expert_scores):
    assert expert_scores.score[:48, 0].tolist() == pytest.approx([1.0] * 48, abs=1e-6)
    np.testing.assert_array_equal(expert_scores.driving_direction_compliance[:48], 1.0)


def test_velocity_agrees_with_the_history_poses(scenes):
    for scene in scenes:
        travelled = np.linalg.norm(np.diff(scene.ego.poses[:, :2], axis=0), axis=1)
        mean = (scene.ego.velocity[1:, 0] + scene.ego.velocity[:-1, 0]) / 2
        np.testing.assert_allclose(travelled, 0.5 * mean, atol=0.12)


def test_constant_velocity_is_far_from_the_expert_on_every_kind_of_road(scenes):
    fde = {kind: [displacement(s)[-1] for s in scenes if s.metadata["layout"] == kind] for kind in KINDS}
    assert 5.0 < np.mean([displacement(s)[-1] for s in scenes]) < 11.0
    for kind, values in fde.items():
        assert np.mean(values) > 3.0, kind


def test_the_route_alternates_and_holds_the_block_the_ego_is_in(scenes):
    for scene in scenes:
        layer = {e.id: e.layer for e in scene.map.layer(MapLayer.ROADBLOCK, MapLayer.ROADBLOCK_CONNECTOR)}
        kinds = [layer[i] for i in scene.roadblock_ids if i in layer]
        assert all(a != b for a, b in pairwise(kinds))
        assert len(set(scene.roadblock_ids)) == len(scene.roadblock_ids)
        here = [
            e.id
            for e in scene.map.layer(MapLayer.ROADBLOCK, MapLayer.ROADBLOCK_CONNECTOR)
            if shapely.Polygon(e.polygon).distance(shapely.Point(0, 0)) < 1e-6
        ]
        assert set(here) & set(scene.roadblock_ids)


def test_the_map_holds_what_meets_the_square_along_the_global_axes():
    # The same drive with a map large enough for everything shows which elements the square must leave out.
    for index in range(4):
        part = SyntheticTown(4, seed=9, map_radius_m=50.0)[index]
        whole = SyntheticTown(4, seed=9, map_radius_m=2000.0)[index]
        kept = {e.id for e in part.map.elements}
        assert 0 < len(kept) < len(whole.map.elements)
        for element in whole.map.elements:
            xy = from_frame(np.column_stack([element.polygon, np.zeros(len(element.polygon))]), whole.origin)[:, :2]
            meets = shapely.Polygon(xy - whole.origin[:2]).intersects(shapely.box(-50, -50, 50, 50))
            assert meets == (element.id in kept)


def test_origins_look_like_utm_coordinates_and_lead_back_to_the_scene(scenes):
    for scene in scenes[:20]:
        assert 2e5 < scene.origin[0] < 8e5
        assert 3.9e6 < scene.origin[1] < 4.8e6
        world = from_frame(scene.future, scene.origin)
        np.testing.assert_allclose(to_frame(world, scene.origin), scene.future, atol=1e-8)


def test_red_connectors_have_a_traffic_light_and_exist_at_intersections_only(scenes):
    for scene in scenes:
        lights = {e.id for e in scene.map.layer(MapLayer.LANE_CONNECTOR) if e.has_traffic_light}
        known = {e.id for e in scene.map.layer(MapLayer.LANE_CONNECTOR)}
        assert scene.red_light_connectors & known <= lights
        assert bool(scene.red_light_connectors) == (scene.metadata["layout"] == "intersection")


def test_kinds_of_road_alternate_and_names_say_which():
    town = SyntheticTown(num_scenes=6, seed=2, first_scene=123)
    assert town.log_of(3) == "town_seed2_intersection_000126"
    assert [town.kind_of(i) for i in range(6)] == ["merge", "straight", "curve", "intersection", "merge", "straight"]
    assert town[3].log_name == town.log_of(3)
    assert town[3].metadata["layout"] == "intersection"


@pytest.mark.parametrize(("first", "count"), [(0, 10), (3, 10), (2, 1), (1, 3)])
def test_the_report_counts_the_scenes_of_each_kind(first, count):
    town = SyntheticTown(num_scenes=count, first_scene=first)
    counts = Counter(town.kind_of(i) for i in range(count))
    assert town.report == {"scenes": count, **{k: counts[k] for k in KINDS}}


def test_a_kind_named_twice_comes_twice_as_often():
    assert SyntheticTown(num_scenes=9, layouts=("curve", "merge", "curve")).report["curve"] == 6


def test_tokens_are_16_hexadecimal_digits_and_those_of_the_scenes():
    town = SyntheticTown(num_scenes=4, seed=1)
    assert len(set(town.tokens)) == 4
    assert all(len(token) == 16 and int(token, 16) >= 0 for token in town.tokens)
    assert [scene.token for scene in (town[i] for i in range(4))] == list(town.tokens)


def test_an_index_outside_is_refused_and_a_negative_one_counts_from_the_end():
    town = SyntheticTown(num_scenes=3)
    assert town[-1].token == town.tokens[2]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"scene {index} of 'synthetic', which has 3 scenes"):
            town[index]


def test_iteration_ends_after_the_last_scene():
    assert [scene.token for scene in SyntheticTown(num_scenes=2)] == list(SyntheticTown(num_scenes=2).tokens)


def test_an_unknown_layout_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown layout 'intersecton'. Did you mean 'intersection'"):
        SyntheticTown(num_scenes=1, layouts=("straight", "intersecton"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 0}, "num_scenes=0"),
        ({"num_scenes": 2.5}, "num_scenes=2.5"),
        ({"num_scenes": 1, "seed": -1}, "seed=-1"),
        ({"num_scenes": 1, "first_scene": -2}, "first_scene=-2"),
        ({"num_scenes": 1, "layouts": ()}, "layouts="),
        ({"num_scenes": 1, "layouts": "curve"}, "layouts='curve'"),
        ({"num_scenes": 1, "map_radius_m": 0.0}, "map_radius_m=0.0"),
        ({"num_scenes": 4, "frames_per_drive": 3}, "frames_per_drive=3 must be 1 or 2"),
        ({"num_scenes": 5, "frames_per_drive": 2}, "num_scenes=5 must be even with frames_per_drive=2, e.g. 6"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticTown(**arguments)


def test_gin_binds_its_arguments():
    gin.parse_config("SyntheticTown.num_scenes = 3\nSyntheticTown.layouts = ('merge',)")
    town = gin.get_configurable("SyntheticTown")()
    assert (len(town), town.kind_of(1)) == (3, "merge")


@pytest.fixture(scope="module")
def pairs():
    """(Earlier scene, later scene, the scene of the town with one frame a drive) of eight drives."""
    two = SyntheticTown(num_scenes=16, seed=3, first_scene=2, frames_per_drive=2)
    one = SyntheticTown(num_scenes=8, seed=3, first_scene=2)
    return [(two[2 * k], two[2 * k + 1], one[k]) for k in range(8)]


def test_the_later_frame_of_a_drive_is_the_scene_that_there_is_with_one_frame(pairs):
    for _, later, alone in pairs:
        assert_equal_scenes(later, alone)
        assert (later.log_name, later.timestamp_us, later.red_light_connectors) == (
            alone.log_name,
            alone.timestamp_us,
            alone.red_light_connectors,
        )


def test_the_earlier_frame_is_half_a_second_before_in_the_same_log(pairs):
    for earlier, later, _ in pairs:
        assert later.timestamp_us - earlier.timestamp_us == 500_000
        assert earlier.log_name == later.log_name and earlier.token != later.token
        assert (earlier.future.shape, len(earlier.detections)) == ((10, 3), 14)


def test_both_frames_see_the_same_drive(pairs):
    for earlier, later, _ in pairs:
        first = from_frame(np.concatenate([earlier.ego.poses, earlier.future]), earlier.origin)
        second = from_frame(np.concatenate([later.ego.poses, later.future]), later.origin)
        np.testing.assert_allclose(first[1:, :2], second[:-1, :2], atol=1e-6)
        np.testing.assert_array_equal(earlier.ego.velocity[1:], later.ego.velocity[:-1])
        np.testing.assert_array_equal(earlier.ego.command[1:], later.ego.command[:-1])


def test_both_frames_see_the_same_objects_under_the_same_tokens(pairs):
    for earlier, later, _ in pairs:
        for before, after in zip(earlier.detections[1:], later.detections[:-1], strict=True):
            assert before.track_tokens == after.track_tokens
            first, second = (
                from_frame(detections.boxes[:, [Box.X, Box.Y, Box.HEADING]], scene.origin)
                for detections, scene in ((before, earlier), (after, later))
            )
            np.testing.assert_allclose(first[:, :2], second[:, :2], atol=1e-6)


def test_tokens_logs_clocks_and_counts_of_pairs_are_those_of_the_scenes(pairs):
    town = SyntheticTown(num_scenes=16, seed=3, first_scene=2, frames_per_drive=2)
    built = [scene for earlier, later, _ in pairs for scene in (earlier, later)]
    assert [scene.token for scene in built] == list(town.tokens) and len(set(town.tokens)) == 16
    assert [scene.log_name for scene in built] == [town.log_of(i) for i in range(16)]
    assert [scene.timestamp_us for scene in built] == [town.time_of(i) for i in range(16)]
    assert town.report == {"scenes": 16, **dict.fromkeys(KINDS, 4)}


def test_the_report_counts_scenes_of_pairs_where_kinds_do_not_come_equally_often():
    report = SyntheticTown(num_scenes=10, first_scene=3, frames_per_drive=2).report
    assert report == {"scenes": 10, "straight": 2, "curve": 2, "intersection": 2, "merge": 4}


def test_the_driver_of_these_pairs_scores_fully_from_both_frames_on(expert_scores):
    assert expert_scores.score[48:, 0].tolist() == pytest.approx([1.0] * 16, abs=1e-6)


def test_context_tokens_and_pictures_can_be_made_of_both_frames(pairs):
    context, camera = SceneTokens(), TownCamera(64, 36)
    for earlier, later, _ in pairs[:4]:
        tokens = [context(scene).tokens for scene in (earlier, later)]
        assert tokens[0].shape == tokens[1].shape and not np.array_equal(*tokens)
        assert camera.picture(earlier).open().size == (64, 36)
