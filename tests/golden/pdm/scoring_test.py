"""Parity of every score of every trajectory with the reference scorer, and independence of how scenes are batched.

Scenes come from `<golden>/pdm/index.json` and from the synthetic ones kept beside this file. All of them form one
batch, shorter groups filled with copies of their last trajectory, so that a program is compiled once for every dtype.
Tolerances are those of the golden README unless a comment says more.
"""

import collections
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from recogdrive.pdm import lqr
from recogdrive.pdm.batch import Sizes, pad_scenes
from recogdrive.pdm.map_index import build_map_index
from recogdrive.pdm.reference_scenes import ReferenceScenes
from recogdrive.pdm.scorer import PdmScorer, score_once
from recogdrive.pdm.scores import EVALUATION_WEIGHTS, REINFORCEMENT_WEIGHTS, PdmScores
from recogdrive.pdm.state import EgoState

pytestmark = pytest.mark.heavy

OWN = Path(__file__).with_name("data")
OTHERS = Path(os.environ.get("RECOGDRIVE_GOLDEN", OWN.parents[3].parent / "shared" / "golden")) / "pdm"
DTYPES = ("float64", "float32")
STATES = 1e-3
SCORES = 1e-4
STOP_EDGE = {"float64": 1e-5, "float32": 1e-3}
"""How near to the stop threshold, in m/s, a speed must come for rounding to decide the branch (spec, section 16)."""
STOP_EDGE_M = 0.05
DISCRETE = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "time_to_collision_within_bound",
    "comfort",
)
_score = jax.jit(score_once, static_argnames="weights")


@pytest.fixture(scope="module")
def golden():
    """Scenes and filled groups of trajectories (S, K, 8, 3), and of each trajectory what the reference made of it.

    `rows` are the scene and column of each trajectory that is no copy; `out_...` arrays have a row for each of them.
    """
    own = ReferenceScenes(OWN)
    sources = [ReferenceScenes(OTHERS), own] if OTHERS.exists() else [own]
    # A scene that both hold is scored once.
    listed = {token: (source, i) for source in reversed(sources) for i, token in enumerate(source.tokens)}.values()
    candidates = [source.candidates(i) for source, i in listed]
    outputs = [source.expected(i) for source, i in listed]
    most = max(map(len, candidates))
    rows = [(s, k) for s, group in enumerate(candidates) for k in range(len(group))]
    per_row = [
        name for name in outputs[0] if all(len(o[name]) == len(c) for o, c in zip(outputs, candidates, strict=True))
    ]
    return _Golden(
        names=[
            f"{source.tokens[i]}[{k}]" for (source, i), c in zip(listed, candidates, strict=True) for k in range(len(c))
        ],
        rows=tuple(np.array(rows).T),
        scenes=[source[i] for source, i in listed],
        trajectories=np.stack([np.concatenate([c, np.repeat(c[-1:], most - len(c), axis=0)]) for c in candidates]),
        scores={},
        **{f"out_{name}": np.concatenate([o[name] for o in outputs]) for name in per_row},
    )


class _Golden(SimpleNamespace):
    def check(self, what, found, expected, tolerance, rows=True):
        """Compares rows, each of which may have its own tolerance; NaN is a difference. Names the worst ones."""
        found = np.asarray(found, np.float64).reshape(len(self.names), -1)
        worst = np.abs(found - np.asarray(expected, np.float64).reshape(found.shape)).max(axis=1)
        wrong = np.flatnonzero(np.broadcast_to(rows, worst.shape) & ~(worst <= tolerance))
        listed = ", ".join(f"{self.names[i]}: {worst[i]:.3g}" for i in wrong[np.argsort(-worst[wrong])][:10])
        assert not len(wrong), f"{what} of {len(wrong)} rows differs, worst of all {listed}"


def scored(golden, dtype):
    """All trajectories of all scenes, at once."""
    if dtype not in golden.scores:
        scorer = PdmScorer(dtype=dtype, max_scenes=len(golden.scenes))
        golden.scores[dtype] = scorer.score(golden.scenes, golden.trajectories)
    return golden.scores[dtype]


def of_rows(golden, scores):
    """Scores of the trajectories that are no copies, a row each; those of the normaliser repeated."""
    scene, column = golden.rows
    return PdmScores(*(values[scene] if values.ndim == 1 else values[scene, column] for values in scores))


def on_stop_edge(golden, dtype):
    """Which drives come so near to the stop threshold that rounding may decide between stopping and driving."""
    ends = np.minimum(np.arange(40) + lqr.TRACKING_STEPS, 39)
    both = np.maximum(golden.out_sim_states[:, :40, EgoState.VELOCITY_X], golden.out_velocity_profile[:, ends])
    return (np.abs(both - lqr.STOP_SPEED_MPS) < STOP_EDGE[dtype]).any(axis=1)


def state_errors(golden, dtype):
    """Differences of the simulated states from the reference's, headings by the shorter way round."""
    errors = of_rows(golden, scored(golden, dtype)).states.astype(np.float64) - golden.out_sim_states
    errors[..., EgoState.HEADING] -= 2 * np.pi * np.round(errors[..., EgoState.HEADING] / (2 * np.pi))
    return errors


def comparable(golden, dtype):
    """Trajectories that must score as in the reference: not fragile, and on no other side of the stop threshold."""
    strayed = (np.abs(state_errors(golden, dtype)) > STATES).any(axis=(1, 2))
    return ~golden.out_fragile & ~(strayed & on_stop_edge(golden, dtype))


def step_of(index):
    """Infraction steps of the reference, infinite for none, with our -1."""
    return np.where(np.isinf(index), -1, index)


def test_all_scenes_of_the_reference_folder_are_scored(golden, golden_dir):
    tokens = {scene.token for scene in golden.scenes}
    assert tokens >= set(ReferenceScenes(golden_dir / "pdm").tokens) | set(ReferenceScenes(OWN).tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hardly_any_trajectory_is_compared_apart(golden, dtype):
    assert (~comparable(golden, dtype)).mean() < 0.01


def test_there_are_scenes_of_every_outcome(golden):
    assert len(golden.names) >= 755
    for name in DISCRETE:
        assert set(np.unique(golden.__dict__[f"out_{name}"])) >= {0, 1}, name
    assert (golden.out_no_at_fault_collisions == 0.5).any()


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_discrete_sub_scores(golden, dtype, name):
    found = getattr(of_rows(golden, scored(golden, dtype)), name)
    golden.check(name, found, golden.__dict__[f"out_{name}"], 0, comparable(golden, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fragile_trajectories_make_the_same_progress(golden, dtype):
    # Their discrete scores may fall either way; what is continuous may not.
    found = of_rows(golden, scored(golden, dtype))
    golden.check("progress of fragile rows", found.progress_m, golden.out_progress_raw_m, STATES, golden.out_fragile)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ego_progress(golden, dtype):
    found = of_rows(golden, scored(golden, dtype))
    edge = on_stop_edge(golden, dtype)
    golden.check("metres", found.progress_m, golden.out_progress_raw_m, np.where(edge, STOP_EDGE_M, STATES))
    golden.check("ego progress", found.ego_progress, golden.out_ego_progress, SCORES, comparable(golden, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_under_evaluation_weights(golden, dtype):
    found = of_rows(golden, scored(golden, dtype))
    assert found.valid.all()
    golden.check("score", found.score, golden.out_score_eval, SCORES, comparable(golden, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_of_infractions(golden, dtype):
    found = of_rows(golden, scored(golden, dtype))
    rows = comparable(golden, dtype)
    golden.check("collision step", found.collision_step, step_of(golden.out_collision_time_idx), 0, rows)
    golden.check("TTC step", found.ttc_step, step_of(golden.out_ttc_time_idx), 0, rows)
    off_road = golden.out_ego_areas[..., 1]
    first = np.where(off_road.any(axis=1), off_road.argmax(axis=1), -1)
    golden.check("off-road step", found.off_road_step, first, 0, rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tracks_and_corners_are_named_where_something_happens(golden, dtype):
    found = of_rows(golden, scored(golden, dtype))
    tracks = np.array([len(scene.agent_types) for scene in golden.scenes])[golden.rows[0]]
    for step, what, most in (
        (found.collision_step, found.collision_track, tracks),
        (found.ttc_step, found.ttc_track, tracks),
        (found.ttc_step, found.ttc_ahead_steps, 10),
        (found.off_road_step, found.off_road_corner, 4),
    ):
        np.testing.assert_array_equal(step >= 0, what >= 0)
        assert (what < most).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_areas_at_every_step(golden, dtype):
    found = of_rows(golden, scored(golden, dtype))
    # A flag may flip for a step as a corner crosses a border, which no score sees.
    tolerance = {"float64": 0, "float32": 1}[dtype]
    differ = (found.area_flags != golden.out_ego_areas).sum(axis=1)
    golden.check("steps with other areas", differ, np.zeros_like(differ), tolerance, comparable(golden, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_comfort_checks(golden, dtype):
    found = of_rows(golden, scored(golden, dtype))
    golden.check("comfort checks", found.comfort_ok, golden.out_comfort_flags, 0, comparable(golden, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_normaliser(golden, dtype):
    found = of_rows(golden, scored(golden, dtype))
    expected = golden.out_normaliser_progress_raw_m
    golden.check("normaliser's metres", found.normaliser_progress_m, expected, STATES)
    golden.check("normaliser's factor", found.normaliser_factor, golden.out_normaliser_multi.prod(axis=-1), 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_simulated_states(golden, dtype):
    errors, edge = state_errors(golden, dtype), on_stop_edge(golden, dtype)
    golden.check("states", errors, np.zeros_like(errors), STATES, ~edge)
    positions = errors[..., : EgoState.HEADING]
    golden.check("positions", positions, np.zeros_like(positions), STOP_EDGE_M, edge)


def padded_sizes(golden, factor):
    """Sizes that hold all scenes and as much again, or whatever the factor."""
    indices = [build_map_index(scene) for scene in golden.scenes]
    return Sizes(*(int(factor * size) for size in Sizes.exact(golden.scenes, indices)))


def in_batches(golden, dtype, order, *, at_once, columns, sizes, weights=EVALUATION_WEIGHTS):
    """Scores of the scenes `order`, some at once; the last batch repeats a scene where there are too few."""
    parts = []
    for start in range(0, len(order), at_once):
        chosen = [order[min(i, len(order) - 1)] for i in range(start, start + at_once)]
        batch = pad_scenes([golden.scenes[i] for i in chosen], dtype=dtype, sizes=sizes)
        with jax.enable_x64(dtype == "float64"):
            scores = _score(batch, golden.trajectories[chosen][:, columns].astype(dtype), weights=weights)
        parts.append(scores)
    return PdmScores(*(np.concatenate(values)[: len(order)] for values in zip(*parts, strict=True)))


def chosen_of(scores, order, columns=slice(None)):
    """Part of the scores of all scenes."""
    return PdmScores(*(v[order] if v.ndim == 1 else v[order][:, columns] for v in scores))


def assert_identical(found, expected, besides=()):
    differing = [
        name
        for name, one, other in zip(PdmScores._fields, found, expected, strict=True)
        if name not in besides and not np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    ]
    assert not differing, f"not identical to the last bit: {', '.join(differing)}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_batches_in_another_order_with_other_padding_and_weights(golden, dtype):
    order = np.random.default_rng(0).permutation(len(golden.scenes))
    found = in_batches(
        golden,
        dtype,
        order,
        at_once=8,
        columns=slice(None),
        sizes=padded_sizes(golden, 1.3),
        weights=REINFORCEMENT_WEIGHTS,
    )
    assert_identical(found, chosen_of(scored(golden, dtype), order), besides=["score"])
    back = of_rows(golden, PdmScores(*(values[np.argsort(order)] for values in found)))
    golden.check("score under the reward's weights", back.score, golden.out_score_rl, SCORES, comparable(golden, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scenes_one_by_one(golden, dtype):
    order = np.arange(0, len(golden.scenes), 3)
    sizes = padded_sizes(golden, 1.0)
    found = in_batches(golden, dtype, order, at_once=1, columns=slice(None), sizes=sizes)
    expected = chosen_of(scored(golden, dtype), order)
    assert_identical(found, expected, besides=["oncoming_m"])
    # In the program for a single scene the compiler adds up the ways of the last second in another order; no score
    # depends on it.
    np.testing.assert_allclose(
        found.oncoming_m, expected.oncoming_m, rtol=0, atol={"float64": 1e-13, "float32": 1e-5}[dtype]
    )


def test_single_trajectories_of_single_scenes(golden):
    # Scenes of one padded size, so that the scorer compiles once.
    fitting = [Sizes.fitting([scene], [build_map_index(scene)]) for scene in golden.scenes]
    common, _ = collections.Counter(fitting).most_common(1)[0]
    order = np.array([i for i, sizes in enumerate(fitting) if sizes == common])[:12]
    scorer = PdmScorer(max_scenes=1)
    for column in (0, golden.trajectories.shape[1] // 2):
        found = scorer.score([golden.scenes[i] for i in order], golden.trajectories[order][:, [column]])
        assert_identical(found, chosen_of(scored(golden, "float64"), order, [column]))
