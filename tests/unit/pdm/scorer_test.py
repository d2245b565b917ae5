"""The whole score on a straight road: weights, normalisation, bad input. One batch and one program for each dtype."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.data.types import AgentClass
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import PdmScene, PolygonLayer
from recogdrive.pdm.scorer import PdmScorer, score_trajectories
from recogdrive.pdm.scores import EVALUATION_WEIGHTS, PdmScores, ScoreWeights

TIMES_S = 0.5 * np.arange(1, 9)
STEPS_S = 0.1 * np.arange(51)
SUB_SCORES = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
    "score",
)
CRUISE, CREEP, SPECIAL = range(3)


def straight(speed_mps):
    """8 poses of driving straight on."""
    return np.stack([speed_mps * TIMES_S, 0 * TIMES_S, 0 * TIMES_S], axis=-1)


def road(
    token, tracks=(), *, ego_speed=10.0, normaliser_speed=12.0, layers=(PolygonLayer.LANE, PolygonLayer.ROADBLOCK)
):
    """A road along x under a lane of the route; tracks are (class, x, y, speed): boxes of 4 m by 2 m, along x."""
    outline = np.array([[-60.0, -5], [200, -5], [200, 5], [-60, 5]])
    poses = np.zeros((51, len(tracks), 3))
    for a, (_, x, y, speed) in enumerate(tracks):
        poses[:, a, 0], poses[:, a, 1] = x + speed * STEPS_S, y
    return PdmScene(
        token=token,
        log_name="log",
        map_name="nowhere",
        timestamp_us=0,
        origin=np.zeros(3),
        ego_state=np.array([0, 0, 0, ego_speed, 0, 0, 0, 0, 0, 0, 0]),
        agent_poses=poses,
        agent_valid=np.ones((51, len(tracks)), bool),
        agent_sizes=np.tile([4.0, 2.0], (len(tracks), 1)),
        agent_speeds=np.array([track[3] for track in tracks], float),
        agent_types=np.array([track[0] for track in tracks], np.int8),
        vertices=np.concatenate([outline] * len(layers)),
        ring_offsets=4 * np.arange(len(layers) + 1, dtype=np.int32),
        polygon_offsets=np.arange(len(layers) + 1, dtype=np.int32),
        polygon_layers=np.array(layers, np.int8),
        polygon_on_route=np.array([layer == PolygonLayer.LANE for layer in layers]),
        centerline=np.array([[-60.0, 0], [200, 0]]),
        normaliser_poses=np.stack([normaliser_speed * STEPS_S, 0 * STEPS_S, 0 * STEPS_S], axis=-1),
        normaliser_name="hand",
        human_poses=np.full((8, 3), np.nan),
    )


CAR, CONE = AgentClass.VEHICLE, AgentClass.TRAFFIC_CONE
CROWD = [(CAR, 4.5 * (i % 50) - 60, 20 + 3.0 * (i // 50), 0.0) for i in range(999)]
SCENES = (
    road("open"),
    road("behind_a_car", [(CAR, 30.0, 0.0, 5.0)]),
    road("no_road", layers=(PolygonLayer.LANE,)),
    road("crowd", [*CROWD, (CAR, 40.0, 0.0, 0.0)]),
    road("cone", [(CONE, 30.0, 0.0, 0.0)]),
    road("slow", ego_speed=1.0, normaliser_speed=1.0),
    road("slow_cone", [(CONE, 7.5, 0.0, 0.0)], ego_speed=1.0, normaliser_speed=1.0),
    road("bad_normaliser", [(CAR, 45.0, 0.0, 0.0)]),
)
OPEN, BEHIND_A_CAR, NO_ROAD, CROWDED, BEFORE_A_CONE, SLOW, SLOW_CONE, BAD_NORMALISER = range(len(SCENES))


def trajectories():
    """(S, 3, 8, 3): at 10 and at 1 m/s, and a bad one in every scene."""
    planned = np.stack([np.stack([straight(10.0), straight(1.0), straight(5.0)])] * len(SCENES))
    planned[OPEN, SPECIAL, 3, 1] = np.nan
    planned[BEHIND_A_CAR, SPECIAL] = 1e30
    planned[NO_ROAD, SPECIAL, ::2] = -3e38
    planned[CROWDED, SPECIAL, :, 2] = 1e30
    planned[BEFORE_A_CONE, SPECIAL, -1, 0] = np.inf
    planned[SLOW, SPECIAL] *= 1e6
    return planned


@pytest.fixture(scope="module")
def scorers():
    return {dtype: PdmScorer(dtype=dtype, max_scenes=len(SCENES)) for dtype in ("float64", "float32")}


@pytest.fixture(scope="module", params=["float64", "float32"])
def scored(request, scorers):
    """All scenes and trajectories, scored once for each dtype."""
    scorer = scorers[request.param]
    return SimpleNamespace(scorer=scorer, scores=scorer.score(SCENES, trajectories()), dtype=request.param)


def weighted(scores, weights):
    """The final score from the sub-scores."""
    factor = scores.no_at_fault_collisions * scores.drivable_area_compliance
    parts = (
        scores.ego_progress,
        scores.time_to_collision_within_bound,
        scores.comfort,
        scores.driving_direction_compliance,
    )
    values = dataclasses.astuple(weights)
    return factor * sum(w * p for w, p in zip(values, parts, strict=True)) / sum(values)


def test_cruising_on_the_open_road_is_faultless(scored):
    scores = scored.scores
    assert [
        getattr(scores, name)[OPEN, CRUISE] for name in SUB_SCORES if "progress" not in name and name != "score"
    ] == [1] * 5
    for steps in (
        scores.collision_step,
        scores.collision_track,
        scores.off_road_step,
        scores.ttc_step,
        scores.ttc_track,
    ):
        assert steps[OPEN, CRUISE] == -1
    assert scores.progress_m[OPEN, CRUISE] == pytest.approx(40, abs=0.1)
    assert scores.normaliser_progress_m[OPEN] > 45
    assert scores.normaliser_factor[OPEN] == 1


def test_progress_is_relative_to_the_normalisers(scored):
    scores = scored.scores
    expected = scores.progress_m[OPEN, CRUISE] / scores.normaliser_progress_m[OPEN]
    assert scores.ego_progress[OPEN, CRUISE] == pytest.approx(expected, rel=1e-6)
    assert 0.8 < expected < 0.9


def test_the_score_weighs_the_sub_scores_as_evaluation_does(scored):
    expected = weighted(scored.scores, EVALUATION_WEIGHTS)
    np.testing.assert_allclose(scored.scores.score, expected, rtol=1e-6, equal_nan=True)
    progress = scored.scores.ego_progress[OPEN, CRUISE]
    assert scored.scores.score[OPEN, CRUISE] == pytest.approx((5 * progress + 5 + 2) / 12, rel=1e-6)


def test_running_into_the_car_ahead_is_named(scored):
    # The front is at 4.049 + 10 t, the car's rear at 28 + 5 t: they meet after 4.79 s, that is never; projected by
    # 0.9 s from 3.9 s on. The ego does not quite keep 10 m/s, so a step more or less.
    scores = scored.scores
    assert scores.no_at_fault_collisions[BEHIND_A_CAR, CRUISE] == 1
    assert scores.time_to_collision_within_bound[BEHIND_A_CAR, CRUISE] == 0
    assert abs(scores.ttc_step[BEHIND_A_CAR, CRUISE] - 39) <= 1
    assert scores.ttc_ahead_steps[BEHIND_A_CAR, CRUISE] == 9
    assert scores.ttc_track[BEHIND_A_CAR, CRUISE] == 0


def test_of_1000_tracks_the_one_that_is_hit_is_named(scored):
    # The stopped car's rear is at 38: 3.4 s at 10 m/s.
    scores = scored.scores
    assert scores.no_at_fault_collisions[CROWDED, CRUISE] == 0
    assert scores.collision_track[CROWDED, CRUISE] == 999
    assert abs(scores.collision_step[CROWDED, CRUISE] - 34) <= 1
    assert scores.score[CROWDED, CRUISE] == 0
    assert scores.no_at_fault_collisions[CROWDED, CREEP] == 1


def test_a_scene_without_agents_has_no_collisions(scored):
    scores = scored.scores
    for scene in (OPEN, NO_ROAD, SLOW):
        assert (scores.no_at_fault_collisions[scene, [CRUISE, CREEP]] == 1).all()
        assert (scores.time_to_collision_within_bound[scene, [CRUISE, CREEP]] == 1).all()


def test_without_a_drivable_area_everything_is_off_the_road(scored):
    scores = scored.scores
    assert (scores.drivable_area_compliance[NO_ROAD, [CRUISE, CREEP]] == 0).all()
    assert (scores.off_road_step[NO_ROAD, [CRUISE, CREEP]] == 0).all()
    assert (scores.score[NO_ROAD, [CRUISE, CREEP]] == 0).all()
    assert scores.normaliser_factor[NO_ROAD] == 0


def test_a_cone_halves_the_progress_and_the_whole_score(scored):
    scores = scored.scores
    assert scores.no_at_fault_collisions[BEFORE_A_CONE, CRUISE] == 0.5
    assert scores.normaliser_factor[BEFORE_A_CONE] == 0.5
    # Both hit it, so that both sides of the ratio are halved.
    expected = scores.progress_m[BEFORE_A_CONE, CRUISE] / scores.normaliser_progress_m[BEFORE_A_CONE]
    assert scores.ego_progress[BEFORE_A_CONE, CRUISE] == pytest.approx(expected, rel=1e-6)
    assert scores.score[BEFORE_A_CONE, CRUISE] == pytest.approx(0.5 * (5 * expected + 0 + 2) / 12, rel=1e-6)
    # Nobody else's progress is: creeping is compared with the halved normaliser.
    halved = scores.progress_m[BEFORE_A_CONE, CREEP] / (0.5 * scores.normaliser_progress_m[BEFORE_A_CONE])
    assert scores.ego_progress[BEFORE_A_CONE, CREEP] == pytest.approx(halved, rel=1e-6)


def test_where_nobody_gets_beyond_5_metres_any_progress_is_full(scored):
    scores = scored.scores
    assert 2 < scores.normaliser_progress_m[SLOW] < 5
    assert scores.ego_progress[SLOW, CREEP] == 1
    assert scores.normaliser_progress_m[SLOW_CONE] < 5
    assert scores.progress_m[SLOW_CONE, CREEP] < 5
    assert scores.no_at_fault_collisions[SLOW_CONE, CREEP] == 0.5
    assert scores.ego_progress[SLOW_CONE, CREEP] == 1


def test_a_normaliser_that_crashes_is_no_measure(scored):
    scores = scored.scores
    assert scores.normaliser_factor[BAD_NORMALISER] == 0
    assert scores.normaliser_progress_m[BAD_NORMALISER] > 45
    assert scores.ego_progress[BAD_NORMALISER, SPECIAL] == 1  # 5 m/s, stays behind.


def test_a_trajectory_with_nan_or_infinity_is_invalid(scored):
    scores = scored.scores
    for scene in (OPEN, BEFORE_A_CONE):
        assert scores.valid[scene].tolist() == [True, True, False]
    assert (~scores.valid).sum() == 2 + (~scores.valid[[BEHIND_A_CAR, NO_ROAD, CROWDED, SLOW], SPECIAL]).sum()


def test_invalid_trajectories_have_nan_for_scores_and_minus_1_for_steps(scored):
    for name, values in scored.scores._asdict().items():
        if name in ("valid", "normaliser_progress_m", "normaliser_factor"):
            continue
        blank = values[~scored.scores.valid]
        if values.dtype == bool:
            assert not blank.any(), name
        elif values.dtype.kind == "f":
            assert np.isnan(blank).all(), name
        else:
            assert (blank == -1).all(), name


def test_valid_trajectories_have_finite_numbers_however_absurd_they_are(scored):
    # Poses of 1e30 m are finite, and so may be what the simulator makes of them.
    scores = scored.scores
    for name in (*SUB_SCORES, "progress_m", "states"):
        values = getattr(scores, name)[scores.valid]
        assert np.isfinite(values).all(), name
    for name in SUB_SCORES:
        values = getattr(scores, name)[scores.valid]
        assert ((values >= 0) & (values <= 1)).all(), name


def test_bad_trajectories_leave_the_others_as_they_are(scored):
    without = scored.scorer.score(SCENES, trajectories()[:, :SPECIAL])
    for name, values in without._asdict().items():
        expected = getattr(scored.scores, name)
        expected = expected if expected.ndim == 1 else expected[:, :SPECIAL]
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_more_scenes_than_fit_are_scored_in_turn(scored):
    order = [*range(len(SCENES)), BEHIND_A_CAR, OPEN]
    longer = scored.scorer.score([SCENES[i] for i in order], trajectories()[order])
    for name, values in longer._asdict().items():
        np.testing.assert_array_equal(values, getattr(scored.scores, name)[order], err_msg=name)


def test_results_are_numpy_arrays_of_the_scorers_dtype(scored):
    for name, values in scored.scores._asdict().items():
        assert isinstance(values, np.ndarray), name
        assert values.dtype.kind != "f" or values.dtype == scored.dtype, name
        assert values.shape[:1] == (len(SCENES),), name


@pytest.fixture(scope="module")
def inside_another_program(scorers):
    """Scores of prepared scenes under weights of all kinds, in a jitted program that goes on with them."""
    weights = ScoreWeights(1.0, 2.0, 3.0, 4.0)

    @jax.jit
    def advantages(scenes, planned):
        scores = score_trajectories(scenes, planned, weights)
        return scores, scores.score - jnp.nanmean(scores.score, axis=1, keepdims=True)

    scenes = scorers["float32"].prepare(SCENES)
    scores, above = advantages(scenes, jnp.asarray(trajectories(), jnp.float32))
    nobody = jnp.full_like(scenes.normaliser_progress_m, jnp.nan)
    unscored = scenes._replace(normaliser_progress_m=nobody, normaliser_factor=nobody)
    without, _ = advantages(unscored, jnp.asarray(trajectories(), jnp.float32))
    return SimpleNamespace(
        scenes=scenes, scores=PdmScores(*map(np.asarray, scores)), above=above, weights=weights, without=without
    )


def test_prepared_scenes_know_their_normalisers(inside_another_program, scorers):
    expected = scorers["float32"].score(SCENES, trajectories())
    np.testing.assert_array_equal(inside_another_program.scenes.normaliser_progress_m, expected.normaliser_progress_m)
    np.testing.assert_array_equal(inside_another_program.scenes.normaliser_factor, expected.normaliser_factor)


def test_without_a_scored_normaliser_progress_and_score_are_nan_and_nothing_else_is(inside_another_program):
    found, expected = inside_another_program.without, inside_another_program.scores
    assert np.isnan(found.ego_progress).all()
    assert np.isnan(found.score).all()
    for name in ("no_at_fault_collisions", "time_to_collision_within_bound", "comfort", "progress_m"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_the_score_can_be_part_of_a_jitted_program(inside_another_program, scorers):
    found, expected = inside_another_program.scores, scorers["float32"].score(SCENES, trajectories())
    for name in set(PdmScores._fields) - {"score", "oncoming_m"}:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    mean = np.nanmean(found.score, axis=1, keepdims=True)
    np.testing.assert_allclose(inside_another_program.above, found.score - mean, atol=1e-6)


def test_any_weights_can_be_given(inside_another_program):
    found = inside_another_program.scores
    expected = weighted(found, inside_another_program.weights)
    np.testing.assert_allclose(found.score, expected, rtol=1e-6, equal_nan=True)
    progress = found.ego_progress[OPEN, CRUISE]
    assert found.score[OPEN, CRUISE] == pytest.approx((1 * progress + 2 + 3 + 4) / 10, rel=1e-6)


def test_evaluation_weights_are_the_default():
    assert PdmScorer().weights == EVALUATION_WEIGHTS
    assert PdmScorer(ScoreWeights(1.0)).weights == ScoreWeights(1.0)


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", "float64"), ("gpu", "float64"), ("tpu", "float32")])
def test_scores_are_computed_in_float64_where_the_device_has_it(monkeypatch, backend, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert PdmScorer().dtype == dtype
    assert PdmScorer(dtype="float64").dtype == "float64"


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"dtype='bfloat16' must be one of float32, float64"):
        PdmScorer(dtype="bfloat16")


def test_batches_of_no_scenes_are_refused():
    with pytest.raises(ValueError, match="max_scenes=0 must be positive"):
        PdmScorer(max_scenes=0)


@pytest.mark.parametrize("poses, interval", [(10, "0.4 s"), (6, "0.667 s"), (40, "0.1 s")])
def test_another_horizon_is_refused_with_what_came(poses, interval):
    planned = np.zeros((1, 2, poses, 3))
    with pytest.raises(ValueError, match=rf"{poses} poses, that is {poses / 2:g} s at 0.5 s or 4 s at {interval}"):
        PdmScorer().score(SCENES[:1], planned)


@pytest.mark.parametrize("shape", [(1, 2, 8, 3), (3, 2, 8, 3), (2, 8, 3), (2, 0, 8, 3)])
def test_another_number_of_groups_is_refused(shape):
    with pytest.raises(ValueError, match=r"for 2 scenes; give \(S, G, 8, 3\) with S=2"):
        PdmScorer().score(SCENES[:2], np.zeros(shape))


def test_no_scenes_are_refused():
    with pytest.raises(ValueError, match="no scenes to score"):
        PdmScorer().score([], np.zeros((0, 2, 8, 3)))


def test_trajectories_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not real numbers"):
        PdmScorer().score(SCENES[:1], np.zeros((1, 1, 8, 3), complex))


@pytest.mark.parametrize(
    "use", [PdmScorer.prepare, lambda scorer, scenes: scorer.score(scenes, np.zeros((1, 1, 8, 3)))]
)
def test_a_centre_line_of_one_point_is_refused_by_name(use):
    scene = dataclasses.replace(SCENES[OPEN], centerline=SCENES[OPEN].centerline[:1])
    with pytest.raises(SceneError, match=r"scene open: centerline is 1 point\(s\) long"):
        use(PdmScorer(), [scene])


def test_scoring_needs_no_torch():
    code = "import sys, recogdrive.pdm.scorer; print([name for name in ('torch', 'torchax') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr
