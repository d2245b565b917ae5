"""From trajectories to the 41 poses, every 0.1 s, that the tracker follows."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recogdrive.geometry import Pose
from recogdrive.pdm.angles import unwrap, wrap_half_open, wrap_nearest
from recogdrive.pdm.state import CANDIDATE_INTERVAL_S, CANDIDATE_POSES, NUM_OBSERVED, NUM_STATES, STEP_S

_SUBSTEPS = round(CANDIDATE_INTERVAL_S / STEP_S)
"""Simulation steps between two poses of a trajectory."""
_HORIZON_S = CANDIDATE_POSES * CANDIDATE_INTERVAL_S


def check_trajectories(trajectories: np.ndarray) -> Bool[np.ndarray, "*n"]:
    """Checks the shape of trajectories to score and tells which of them are finite.

    Args:
      trajectories: (*n, 8, 3) x, y, heading at 0.5 ... 4 s.

    Returns:
      (*n,) bool; one that holds a NaN or an infinity is invalid, which is no error.

    Raises:
      ValueError: They are not numbers, or not 8 poses of 3 entries.
    """
    trajectories = np.asarray(trajectories)
    expected = f"expected (..., {CANDIDATE_POSES}, {len(Pose)}): x, y, heading every {CANDIDATE_INTERVAL_S} s"
    if trajectories.dtype.kind not in "fiu":
        raise ValueError(f"trajectories are of dtype {trajectories.dtype}, not real numbers; {expected}.")
    if trajectories.ndim < 2 or trajectories.shape[-1] != len(Pose):
        raise ValueError(f"trajectories have shape {trajectories.shape}; {expected}.")
    poses = trajectories.shape[-2]
    if poses != CANDIDATE_POSES:
        came = f"{poses} poses, that is {poses * CANDIDATE_INTERVAL_S:g} s at {CANDIDATE_INTERVAL_S} s"
        if poses:
            came += f" or {_HORIZON_S:g} s at {_HORIZON_S / poses:.3g} s"
        raise ValueError(
            f"trajectories have shape {trajectories.shape}: {came}; {expected} up to {_HORIZON_S:g} s. "
            f"Resample them to that horizon and interval."
        )
    return np.isfinite(trajectories).all((-2, -1))


def absolute_poses(trajectory: Float[Array, "*n T 3"], initial_pose: Float[Array, "*#n 3"]) -> Float[Array, "*n T 3"]:
    """Moves poses from the initial rear-axle frame into the frame `initial_pose` is given in; headings are wrapped.

    Source: NAVSIM `transform_trajectory`, nuPlan `relative_to_absolute_poses`.
    """
    x, y, heading = (trajectory[..., column] for column in Pose)
    x0, y0, heading0 = (initial_pose[..., None, column] for column in Pose)
    cos, sin = jnp.cos(heading0), jnp.sin(heading0)
    return jnp.stack(
        [x0 + cos * x - sin * y, y0 + sin * x + cos * y, wrap_nearest(heading0 + wrap_nearest(heading))], axis=-1
    )


def interpolate_candidate(
    poses: Float[Array, "*n 8 3"], initial_pose: Float[Array, "*#n 3"]
) -> Float[Array, "*n 41 3"]:
    """Interpolates a trajectory linearly to 0, 0.1 ... 4 s, headings along the shorter way round.

    Upstream's clock of whole microseconds, which may sample a pose one microsecond early, is not imitated.

    Args:
      poses: x, y, heading at 0.5 ... 4 s, in the frame of `initial_pose`'s parent (see `absolute_poses`).
      initial_pose: Pose at 0 s.

    Source: NAVSIM `get_trajectory_as_array` over nuPlan's `InterpolatedTrajectory`.
    """
    initial = jnp.broadcast_to(initial_pose[..., None, :], (*poses.shape[:-2], 1, len(Pose)))
    knots = jnp.moveaxis(jnp.concatenate([initial, poses], axis=-2), -1, 0)
    knots = jnp.concatenate([knots[: Pose.HEADING], unwrap(knots[Pose.HEADING])[None]])
    weights = jnp.asarray(np.arange(_SUBSTEPS) / _SUBSTEPS, poses.dtype)
    between = knots[..., :-1, None] + jnp.diff(knots)[..., None] * weights
    samples = jnp.concatenate([between.reshape(*knots.shape[:-1], NUM_STATES - 1), knots[..., -1:]], axis=-1)
    x, y, heading = samples
    return jnp.stack([x, y, wrap_half_open(heading)], axis=-1)


def interpolate_normaliser(poses: Float[Array, "*n 51 3"]) -> Float[Array, "*n 41 3"]:
    """The first 4 s of the normaliser, which has a pose at every step of the simulation already.

    Its pose at 0 s lies on its path, not at the ego.

    Raises:
      ValueError: There are not 51 poses.
    """
    if poses.shape[-2:] != (NUM_OBSERVED, len(Pose)):
        raise ValueError(f"normaliser poses have shape {poses.shape}; expected (..., {NUM_OBSERVED}, {len(Pose)}).")
    headings = wrap_half_open(poses[..., :NUM_STATES, Pose.HEADING])
    return jnp.concatenate([poses[..., :NUM_STATES, : Pose.HEADING], headings[..., None]], axis=-1)
