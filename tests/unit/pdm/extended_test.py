"""The extended score on a straight road: traffic, references, filter, bad input. One batch and one program a dtype."""

import dataclasses
import functools

import numpy as np
import pytest

from recogdrive.data.types import AgentClass
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.extended import ExtendedScorer
from recogdrive.pdm.extended_scores import MULTIPLIED, SUB_SCORES, ExtendedScores
from recogdrive.pdm.scene import ExtendedFacts, PdmScene, PolygonLayer
from recogdrive.pdm.scorer import PdmScorer

pytestmark = pytest.mark.heavy

TIMES_S = 0.5 * np.arange(1, 9)
STEPS_S = 0.1 * np.arange(51)
CRUISE, STAND, BAD = range(3)
ALL_FRAMES = (0, 8)


def straight(speed_mps):
    """8 poses of driving straight on."""
    return np.stack([speed_mps * TIMES_S, 0 * TIMES_S, 0 * TIMES_S], axis=-1)


def road(token, tracks=(), lights=(), *, intersection=None, human_mps=10.0):
    """A road along x under a lane of the route that the normaliser drives at 12 m/s, the ego starting with 10 m/s.

    Tracks are (x, y, sightings): cars of 4 m by 2 m that never move. Lights are (x0, x1, frames), as wide as the road.
    """
    rings = [[[-60.0, -5], [200, -5], [200, 5], [-60, 5]]] * 2
    layers = [PolygonLayer.LANE, PolygonLayer.ROADBLOCK]
    if intersection is not None:
        rings.append([[intersection[0], -50], [intersection[1], -50], [intersection[1], 50], [intersection[0], 50]])
        layers.append(PolygonLayer.INTERSECTION)
    poses = np.zeros((51, len(tracks), 3))
    for a, (x, y, _) in enumerate(tracks):
        poses[:, a, :2] = x, y
    past = np.zeros((4, 11))
    past[:, 0], past[:, 3] = 10.0 * np.array([-1.5, -1.0, -0.5, 0.0]), 10.0
    outlines = [[[x0, -5], [x1, -5], [x1, 5], [x0, 5]] for x0, x1, _ in lights]
    normaliser = np.stack([12.0 * STEPS_S, 0 * STEPS_S, 0 * STEPS_S], axis=-1)
    return PdmScene(
        token=token,
        log_name="log",
        map_name="nowhere",
        timestamp_us=0,
        origin=np.zeros(3),
        ego_state=past[-1],
        agent_poses=poses,
        agent_valid=np.ones((51, len(tracks)), bool),
        agent_sizes=np.tile([4.0, 2.0], (len(tracks), 1)),
        agent_speeds=np.zeros(len(tracks)),
        agent_types=np.full(len(tracks), AgentClass.VEHICLE, np.int8),
        vertices=np.concatenate(rings).astype(float),
        ring_offsets=4 * np.arange(len(rings) + 1, dtype=np.int32),
        polygon_offsets=np.arange(len(rings) + 1, dtype=np.int32),
        polygon_layers=np.array(layers, np.int8),
        polygon_on_route=np.array([layer == PolygonLayer.LANE for layer in layers]),
        centerline=np.array([[-60.0, 0], [200, 0]]),
        normaliser_poses=normaliser,
        normaliser_name="hand",
        human_poses=straight(human_mps),
        extended=ExtendedFacts(
            agent_sightings=np.array([track[2] for track in tracks], np.int8).reshape(-1, 2),
            history_states=past,
            history_times_us=np.array([0, 500_000, 1_000_000, 1_500_000]),
            light_vertices=np.array(outlines, float).reshape(-1, 2),
            light_offsets=4 * np.arange(len(lights) + 1, dtype=np.int32),
            light_frames=np.array([light[2] for light in lights], np.int16),
            normaliser_poses_v2=normaliser,
        ),
    )


def off_route(token, **kwargs):
    """The road without a lane of the route."""
    return dataclasses.replace(road(token, **kwargs), polygon_on_route=np.zeros(3, bool))


SCENES = {
    scene.token: scene
    for scene in (
        road("open"),
        road("car_over_ego", [(1.461, 1.5, ALL_FRAMES)]),
        road("car_touching_ego", [(4.049 + 2.0, 0.0, ALL_FRAMES)]),
        road("car_seen_once", [(30.0, 0.0, (4, 4))]),
        road("car_seen_later", [(30.0, 0.0, (-1, -1))]),
        road("car_gone_at_2_s", [(30.0, 0.0, (0, 4))]),
        road("car_gone_too_late", [(24.0, 0.0, (0, 4))]),
        # Driving on for 0.9 s at 10 m/s, the front first meets a car whose rear is at x in step x - 13.049.
        road("violation_in_step_31", [(43.5 + 2.0, 0.0, ALL_FRAMES)]),
        road("violation_in_step_32", [(44.5 + 2.0, 0.0, ALL_FRAMES)]),
        road("red_for_all", lights=[(20.0, 40.0, 511)]),
        road("red_for_human_behind", lights=[(35.0, 40.0, 511)], human_mps=5.0),
        off_route("against_the_direction", intersection=(-90.0, -80.0)),
        off_route("in_an_intersection", intersection=(-90.0, 90.0)),
    )
}


def plans():
    trajectories = np.stack([straight(10.0), straight(0.0), straight(10.0)])
    trajectories[BAD, 4, 1] = np.nan
    return np.tile(trajectories, (len(SCENES), 1, 1, 1))


@pytest.fixture(scope="module")
def scored_in_turn():
    """dtype -> its scorer, and scores of all plans in all scenes, some scenes at once."""

    @functools.cache
    def score(dtype):
        scorer = ExtendedScorer(dtype=dtype, max_scenes=len(SCENES) - 5)
        return scorer, scorer.score(list(SCENES.values()), plans())

    return score


@pytest.fixture(scope="module", params=["float64", "float32"])
def scored(request, scored_in_turn):
    """(scene, plan) -> scores, as a function."""
    _, scores = scored_in_turn(request.param)

    def of(token, plan=CRUISE):
        number = list(SCENES).index(token)
        return ExtendedScores(
            *(v[number] if v.ndim == 1 or n == "human_breaks" else v[number, plan] for n, v in _items(scores))
        )

    return of


def _items(scores):
    return zip(ExtendedScores._fields, scores, strict=True)


def broken(scores):
    """Sub-scores below 1, progress aside."""
    return {name for name in SUB_SCORES if getattr(scores, name) < 1} - {"ego_progress"}


def test_an_open_road_costs_progress_alone(scored):
    scores = scored("open")
    assert broken(scores) == set()
    assert scores.progress_m == pytest.approx(40.0, abs=0.1)
    assert 44 < scores.normaliser_progress_m < 48  # It has to speed up from 10 to 12 m/s.
    assert scores.ego_progress == pytest.approx(scores.progress_m / scores.normaliser_progress_m, rel=1e-5)
    assert scores.score == pytest.approx((5 * scores.ego_progress + 5 + 2 + 2) / 14, rel=1e-5)


@pytest.mark.parametrize("token", ["car_over_ego", "car_touching_ego"])
def test_what_meets_the_ego_at_the_start_is_not_there(scored, token):
    assert broken(scored(token)) == set()
    assert scored(token).collision_step == -1


def test_the_pdm_score_sees_what_meets_the_ego_at_the_start_and_what_comes_later():
    scenes = [SCENES["car_over_ego"], SCENES["violation_in_step_32"]]
    found = PdmScorer().score(scenes, np.tile(straight(10.0), (2, 1, 1, 1)))
    assert found.no_at_fault_collisions[:, 0].tolist() == [0, 1]
    assert found.ttc_step[1, 0] == 32


def test_a_track_of_one_frame_stands_there_all_the_time(scored):
    # Its rear at x = 28 is reached 23.95 m on, in step 24.
    assert scored("car_seen_once").collision_step == 24
    assert scored("car_seen_once").no_at_fault_collisions == 0


@pytest.mark.parametrize("token", ["car_seen_later", "car_gone_at_2_s"])
def test_tracks_outside_of_their_frames_cannot_be_hit(scored, token):
    assert scored(token).no_at_fault_collisions == 1


def test_a_track_of_several_frames_is_there_from_the_first_to_the_last_of_them(scored):
    # Its rear at x = 22 is reached in step 18, and 0.9 s earlier in a straight projection.
    assert scored("car_gone_too_late").collision_step == 18
    assert scored("car_gone_too_late").ttc_step == 9
    assert scored("car_gone_at_2_s").ttc_step == -1


def test_time_to_collision_ends_at_step_31(scored):
    assert scored("violation_in_step_31").ttc_step == 31
    assert broken(scored("violation_in_step_31")) == {"no_at_fault_collisions", "time_to_collision_within_bound"}
    assert broken(scored("violation_in_step_32")) == set()


def test_a_red_light_is_passed_or_not(scored):
    assert scored("red_for_all").red_light_step == 16
    assert broken(scored("red_for_all")) == {"traffic_light_compliance"}
    assert scored("red_for_all").score == 0
    assert scored("red_for_all", STAND).traffic_light_compliance == 1


def test_the_human_breaks_what_it_breaks_alone(scored):
    assert [name for name, b in zip(SUB_SCORES, scored("red_for_all").human_breaks, strict=True) if b] == [
        "traffic_light_compliance"
    ]
    assert scored("red_for_human_behind").traffic_light_compliance == 0
    assert not scored("red_for_human_behind").human_breaks.any()


def test_a_normaliser_that_breaks_a_rule_sets_no_measure(scored):
    assert scored("red_for_all").normaliser_factor == 0
    # Nobody makes 5 m of legal progress, so that any progress is full.
    assert scored("red_for_all").ego_progress == scored("red_for_all", STAND).ego_progress == 1


def test_an_intersection_excuses_driving_off_the_route(scored):
    assert scored("against_the_direction").driving_direction_compliance == 0
    assert scored("against_the_direction").human_breaks[MULTIPLIED.index("driving_direction_compliance")]
    assert scored("in_an_intersection").driving_direction_compliance == 1


def test_a_trajectory_that_is_not_finite_is_invalid_and_leaves_the_others_alone(scored):
    bad = scored("open", BAD)
    assert not bad.valid and np.isnan(bad.score) and np.isnan(bad.lane_keeping) and bad.collision_step == -1
    assert scored("open").valid


def test_prepared_scenes_score_as_those_scored_in_turn(scored_in_turn):
    scorer, once = scored_in_turn("float64")
    scenes = list(SCENES.values())
    batch = scorer.prepare(scenes)
    again = scorer.score_batch(batch, plans())
    assert batch.num_scenes == len(scenes) and batch.num_bytes > 0
    for name, value in _items(once):
        np.testing.assert_allclose(value, getattr(again, name), rtol=0, atol=1e-12, err_msg=name)


def test_scenes_without_extended_facts_are_refused():
    scene = dataclasses.replace(SCENES["open"], extended=None)
    with pytest.raises(SceneError, match="scene open: its extended facts .* are unknown, so it has no EPDMS"):
        ExtendedScorer().score([scene], straight(10.0)[None, None])


def test_scenes_without_a_human_are_refused():
    scene = dataclasses.replace(SCENES["open"], human_poses=np.full((8, 3), np.nan))
    with pytest.raises(SceneError, match="scene open: its human_poses are unknown"):
        ExtendedScorer().score([scene], straight(10.0)[None, None])


def test_no_scenes_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="no scenes to score"):
        ExtendedScorer().score([], np.zeros((0, 1, 8, 3)))
    with pytest.raises(ValueError, match="for 1 scenes"):
        ExtendedScorer().score([SCENES["open"]], np.zeros((2, 1, 8, 3)))
    with pytest.raises(ValueError, match="dtype='float16'"):
        ExtendedScorer(dtype="float16")
    with pytest.raises(ValueError, match="max_scenes=0"):
        ExtendedScorer(max_scenes=0)


def test_pairs_are_compared_in_any_number():
    drives = np.zeros((3, 41, 11))
    drives[1, :, 5] = 1.0
    found = ExtendedScorer().compare(drives, np.zeros((3, 41, 11)), 5)
    assert found.tolist() == [1.0, 0.0, 1.0]
