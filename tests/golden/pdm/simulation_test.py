"""Parity of the simulation, and of what is measured on it alone, with the reference scorer.

Scenes come from `<golden>/pdm/index.json`. All candidates of all scenes form one batch, so that a program is compiled
once for every dtype. Tolerances are those of the golden README unless a comment says more.
"""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm import footprint, lqr, trajectory
from recogdrive.pdm.metrics.comfort import comfort
from recogdrive.pdm.metrics.driving_direction import driving_direction
from recogdrive.pdm.metrics.progress import raw_progress
from recogdrive.pdm.simulator import simulate
from recogdrive.pdm.state import EgoState

DTYPES = ("float64", "float32")
MICROSECONDS = 1e-3
"""Upstream's clock of whole microseconds moves poses by the way of one microsecond (spec, section 3)."""
STOP_EDGE = {"float64": 1e-5, "float32": 1e-3}
"""How near to the stop threshold, in m/s, a speed must come for rounding to decide the branch (spec, section 16)."""
STOP_EDGE_TOLERANCE = 0.05
NORMALISER_ARRAYS = ("normaliser_poses", "out_normaliser_interp_poses", "out_normaliser_sim_states")


@pytest.fixture(scope="module")
def golden(golden_dir):
    """Candidates and outputs of all scenes in one batch; `normaliser` holds the same of the normalisers."""
    folder = golden_dir / "pdm"
    index = json.loads((folder / "index.json").read_text())
    scenes = []
    for entry in index["scenes"]:
        with np.load(folder / entry["file"]) as arrays:
            scenes.append({name: arrays[name] for name in arrays.files if not name.startswith(("agent", "poly"))})
    assert scenes
    counts = [len(scene["candidates"]) for scene in scenes]
    candidates = _Batch(
        scene=np.repeat(np.arange(len(scenes)), counts),
        names=[f"{e['file']}[{i}]" for e, count in zip(index["scenes"], counts, strict=True) for i in range(count)],
        ego_state=np.stack([scene["ego_state"] for scene in scenes]).repeat(counts, axis=0),
        **{name: np.concatenate([scene[name] for scene in scenes]) for name in ("candidates", *_outputs(scenes))},
    )
    normaliser = _Batch(
        scene=np.arange(len(scenes)),
        names=[entry["file"] for entry in index["scenes"]],
        ego_state=np.stack([scene["ego_state"] for scene in scenes]),
        **{name: np.stack([scene[name] for scene in scenes]) for name in NORMALISER_ARRAYS},
        progress_m=np.array([scene["out_normaliser_progress_raw_m"][0] for scene in scenes]),
    )
    lengths = np.array([len(scene["centerline"]) for scene in scenes])
    lines = np.zeros((len(scenes), lengths.max(), 2))
    for line, scene in zip(lines, scenes, strict=True):
        line[: len(scene["centerline"])] = scene["centerline"][:, :2]
    return SimpleNamespace(candidates=candidates, normaliser=normaliser, lines=lines, lengths=lengths, found={})


class _Batch(SimpleNamespace):
    """Arrays with one row for each name."""

    def check(self, what, found, expected, tolerance, rows=None):
        """Compares rows, of which each may have its own tolerance; names the worst ones."""
        found = np.asarray(found, np.float64).reshape(len(self.names), -1)
        expected = np.asarray(expected, np.float64).reshape(found.shape)
        worst = np.abs(found - expected).max(axis=1)
        rows = np.ones(len(worst), bool) if rows is None else rows
        wrong = np.flatnonzero(rows & ~(worst <= tolerance))
        listed = ", ".join(f"{self.names[i]}: {worst[i]:.3g}" for i in wrong[np.argsort(-worst[wrong])][:10])
        assert not len(wrong), f"{what} of {len(wrong)} of {rows.sum()} rows differs, worst of all {listed}"


def _outputs(scenes):
    per_candidate = [n for n in scenes[0] if n.startswith("out_") and not n.startswith("out_normaliser")]
    return [name for name in per_candidate if all(len(s[name]) == len(s["candidates"]) for s in scenes)]


@jax.jit
def _drive(poses, states):
    return lqr.profiles(poses), simulate(poses, states)


@jax.jit
def _interpolate(candidates, states):
    initial = states[..., : EgoState.VELOCITY_X]
    return trajectory.interpolate_candidate(trajectory.absolute_poses(candidates, initial), initial)


@jax.jit
def _progress(states, lines, lengths):
    centers = footprint.centers(states)
    return raw_progress(centers[..., :1, :], centers[..., -1:, :], lines, lengths)[..., 0]


@jax.jit
def _comfort(states):
    return comfort(states)


@jax.jit
def _direction(states, oncoming):
    return driving_direction(footprint.centers(states), oncoming)


def simulated(golden, dtype):
    """Poses, profiles and states of all candidates, and then of all normalisers, from what the scenes hold."""
    if dtype not in golden.found:
        with jax.enable_x64(dtype == "float64"):
            states = np.concatenate([golden.candidates.ego_state, golden.normaliser.ego_state]).astype(dtype)
            split = len(golden.candidates.names)
            poses = jnp.concatenate(
                [
                    _interpolate(golden.candidates.candidates.astype(dtype), states[:split]),
                    trajectory.interpolate_normaliser(jnp.asarray(golden.normaliser.normaliser_poses, dtype)),
                ]
            )
            results = jax.tree.map(np.asarray, (poses, *_drive(poses, states)))
        assert {str(values.dtype) for values in jax.tree.leaves(results)} == {dtype}
        golden.found[dtype] = tuple(
            SimpleNamespace(poses=p, speeds=v, curvatures=k, states=s)
            for part in (slice(split), slice(split, None))
            for p, (v, k), s in [jax.tree.map(lambda values, part=part: values[part], results)]
        )
    return golden.found[dtype]


def turned(values, expected):
    """Values with headings moved by whole turns next to the expected ones."""
    values = np.array(values, np.float64)
    difference = values[..., EgoState.HEADING] - expected[..., EgoState.HEADING]
    values[..., EgoState.HEADING] -= 2 * np.pi * np.round(difference / (2 * np.pi))
    return values


def on_stop_edge(states, speeds, dtype):
    """Which drives come so near to the stop threshold that rounding may decide between stopping and driving."""
    ends = np.minimum(np.arange(40) + lqr.TRACKING_STEPS, 39)
    both = np.maximum(states[:, :40, EgoState.VELOCITY_X], speeds[:, ends])
    return (np.abs(both - lqr.STOP_SPEED_MPS) < STOP_EDGE[dtype]).any(axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_poses_handed_to_the_tracker(golden, dtype):
    for batch, found, expected in zip(
        (golden.candidates, golden.normaliser),
        simulated(golden, dtype),
        (golden.candidates.out_interp_poses, golden.normaliser.out_normaliser_interp_poses),
        strict=True,
    ):
        batch.check("interpolated poses", turned(found.poses, expected), expected, MICROSECONDS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_speed_profiles(golden, dtype):
    found = simulated(golden, dtype)[0]
    golden.candidates.check("speed profile", found.speeds, golden.candidates.out_velocity_profile, MICROSECONDS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_curvature_profiles(golden, dtype):
    found = simulated(golden, dtype)[0]
    golden.candidates.check("curvature", found.curvatures, golden.candidates.out_curvature_profile, MICROSECONDS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_simulated_states_of_candidates(golden, dtype):
    batch, found = golden.candidates, simulated(golden, dtype)[0]
    states = turned(found.states, batch.out_sim_states)
    edge = on_stop_edge(batch.out_sim_states, batch.out_velocity_profile, dtype)
    batch.check("states", states, batch.out_sim_states, 1e-3, ~edge)
    positions = slice(EgoState.X, EgoState.Y + 1)
    batch.check(
        "positions", states[..., positions], batch.out_sim_states[..., positions], STOP_EDGE_TOLERANCE, rows=edge
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_simulated_states_of_normalisers(golden, dtype):
    batch, found = golden.normaliser, simulated(golden, dtype)[1]
    states, expected = turned(found.states, batch.out_normaliser_sim_states), batch.out_normaliser_sim_states
    edge = on_stop_edge(expected, found.speeds, dtype)
    batch.check("states", states, expected, 1e-3, ~edge)
    batch.check("positions", states[..., :2], expected[..., :2], STOP_EDGE_TOLERANCE, rows=edge)


def test_simulated_states_from_the_references_own_poses(golden):
    batch = golden.candidates
    with jax.enable_x64(True):
        (speeds, curvatures), states = _drive(
            np.concatenate([batch.out_interp_poses, golden.normaliser.out_normaliser_interp_poses]),
            np.concatenate([batch.ego_state, golden.normaliser.ego_state]),
        )
    split = len(batch.names)
    batch.check("states", turned(states[:split], batch.out_sim_states), batch.out_sim_states, 1e-9)
    batch.check("speed profile", speeds[:split], batch.out_velocity_profile, 1e-9)
    batch.check("curvature", curvatures[:split], batch.out_curvature_profile, 1e-9)
    expected = golden.normaliser.out_normaliser_sim_states
    golden.normaliser.check("states", turned(states[split:], expected), expected, 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_comfort_of_the_references_states(golden, dtype):
    batch = golden.candidates
    with jax.enable_x64(dtype == "float64"):
        ok, least, largest = _comfort(batch.out_sim_states.astype(dtype))
    # Signals are rounded to 8 decimals; float32 leaves 1e-4 of derivatives of a heading near half a turn.
    tolerance = {"float64": 1.01e-8, "float32": 1e-3}[dtype]
    batch.check("least values", least, batch.out_comfort_min, tolerance)
    batch.check("largest values", largest, batch.out_comfort_max, tolerance)
    batch.check("comfort checks", ok, batch.out_comfort_flags, 0, ~batch.out_fragile)


@pytest.mark.parametrize("dtype", DTYPES)
def test_comfort_of_our_own_states(golden, dtype):
    batch = golden.candidates
    with jax.enable_x64(dtype == "float64"):
        ok = np.asarray(_comfort(simulated(golden, dtype)[0].states)[0])
    edge = on_stop_edge(batch.out_sim_states, batch.out_velocity_profile, dtype)
    batch.check("comfort checks", ok, batch.out_comfort_flags, 0, ~batch.out_fragile & ~edge)
    batch.check("comfort", ok.all(axis=-1), batch.out_comfort, 0, ~batch.out_fragile & ~edge)


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_progress_on_the_references_states(golden, dtype):
    batch = golden.candidates
    with jax.enable_x64(dtype == "float64"):
        found = _progress(
            batch.out_sim_states.astype(dtype), golden.lines.astype(dtype)[batch.scene], golden.lengths[batch.scene]
        )
        normaliser = _progress(
            golden.normaliser.out_normaliser_sim_states.astype(dtype), golden.lines.astype(dtype), golden.lengths
        )
    # In float32 two places of the line that are equally near but for rounding may be a millimetre apart.
    tolerance = {"float64": 1e-9, "float32": 1e-3}[dtype]
    batch.check("progress", found, batch.out_progress_raw_m, tolerance)
    golden.normaliser.check("progress", normaliser, golden.normaliser.progress_m, tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_progress_on_our_own_states(golden, dtype):
    batch = golden.candidates
    with jax.enable_x64(dtype == "float64"):
        found = _progress(
            simulated(golden, dtype)[0].states, golden.lines.astype(dtype)[batch.scene], golden.lengths[batch.scene]
        )
    edge = on_stop_edge(batch.out_sim_states, batch.out_velocity_profile, dtype)
    batch.check("progress", found, batch.out_progress_raw_m, np.where(edge, STOP_EDGE_TOLERANCE, 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_driving_direction_of_the_references_states_and_areas(golden, dtype):
    batch = golden.candidates
    with jax.enable_x64(dtype == "float64"):
        score, _ = _direction(batch.out_sim_states.astype(dtype), batch.out_ego_areas[..., 2])
    batch.check("driving direction", score, batch.out_driving_direction_compliance, 0, ~batch.out_fragile)
