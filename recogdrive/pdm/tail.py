"""How plans end: going backwards, or standing still. Of the eight raw poses, whatever the car would make of them.

Reinforcement learning on the PDM score may spoil the last way-points, which the simulated drive hardly feels.
Functions take NumPy or JAX arrays and answer alike.
"""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recogdrive.geometry import Pose
from recogdrive.pdm.state import CANDIDATE_INTERVAL_S

Plans = Float[np.ndarray, "*n 8 3"] | Float[Array, "*n 8 3"]
Numbers = Float[np.ndarray, "*n k"] | Float[Array, "*n k"]
Flags = Bool[np.ndarray, "*n"] | Bool[Array, "*n"]

TAIL_INTERVALS = round(1.0 / CANDIDATE_INTERVAL_S)
"""The last second."""
REVERSE_M = 0.05
"""A plan reverses in an interval if it goes back farther than this."""
STOPPED_M = 0.2
"""A plan stops if it goes less far than this in the last second."""


def reverses(trajectories: Plans) -> Flags:
    """Whether a plan goes back more than 0.05 m in one of the last two intervals, along its own heading.

    Args:
      trajectories: x, y, heading at 0.5 ... 4 s in the initial rear-axle frame, metres and radians. One with poses that
        are not finite does not count as reversing.
    """
    return (backward_m(trajectories, TAIL_INTERVALS) > REVERSE_M).any(axis=-1)


def stops(trajectories: Plans) -> Flags:
    """Whether a plan moves less than 0.2 m in the last second, to and fro added up.

    Args:
      trajectories: See `reverses`; one with poses that are not finite does not count as stopping.
    """
    xp = _namespace(trajectories)
    steps = _with_start(trajectories, TAIL_INTERVALS)
    steps = steps[..., 1:, : Pose.HEADING] - steps[..., :-1, : Pose.HEADING]
    return xp.hypot(steps[..., Pose.X], steps[..., Pose.Y]).sum(axis=-1) < STOPPED_M


def backward_m(trajectories: Plans, last_intervals: int) -> Numbers:
    """How far a plan goes back in each of its last intervals: max(0, -ds), ds along the heading it begins with.

    Args:
      trajectories: See `reverses`.
      last_intervals: How many of the 8 intervals of 0.5 s; the first one begins at the pose (0, 0, 0).

    Returns:
      (*n, last_intervals) metres, at least 0.

    Raises:
      ValueError: The plans have fewer intervals.
    """
    xp = _namespace(trajectories)
    poses = _with_start(trajectories, last_intervals)
    begin, end = poses[..., :-1, :], poses[..., 1:, :]
    heading = begin[..., Pose.HEADING]
    ahead = (end[..., Pose.X] - begin[..., Pose.X]) * xp.cos(heading)
    ahead = ahead + (end[..., Pose.Y] - begin[..., Pose.Y]) * xp.sin(heading)
    return xp.maximum(-ahead, 0)


def _with_start(trajectories: Plans, last_intervals: int) -> Plans:
    """The poses that bound the last intervals."""
    num_poses = trajectories.shape[-2]
    if not 1 <= last_intervals <= num_poses:
        raise ValueError(f"{last_intervals} intervals, but plans have {num_poses}; give 1 to {num_poses}.")
    xp = _namespace(trajectories)
    poses = xp.concatenate([xp.zeros_like(trajectories[..., :1, :]), trajectories], axis=-2)
    return poses[..., num_poses - last_intervals :, :]


def _namespace(array: Plans) -> ModuleType:
    """What computes with it, tracers included."""
    return jnp if isinstance(array, jax.Array) else np
