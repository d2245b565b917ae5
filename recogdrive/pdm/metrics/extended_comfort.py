"""Two-frame extended comfort: whether the plans of two consecutive frames drive alike where they overlap in time."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recogdrive.pdm.angles import unwrap
from recogdrive.pdm.linear import apply_matrix
from recogdrive.pdm.metrics.comfort import DECIMALS, savitzky_golay
from recogdrive.pdm.metrics.history_comfort import ACCELERATION_WINDOW, JERK_WINDOW, YAW_WINDOW
from recogdrive.pdm.state import NUM_STATES, EgoState

FEATURES = ("acceleration", "jerk", "yaw_rate", "yaw_acceleration")
MOST = (0.7, 0.5, 0.1, 0.1)
"""Bounds of the root mean squares in m/s^2, m/s^3, rad/s, rad/s^2; a value on its bound passes."""


def extended_comfort(
    current: Float[Array, "*n 41 11"], previous: Float[Array, "*n 41 11"], steps: int
) -> tuple[Bool[Array, "*n 4"], Float[Array, "*n 4"]]:
    """Compares simulated drives with those of a frame before, at the times that both have.

    Args:
      current: Simulated states, see `EgoState`, in any frame: only accelerations and changes of heading count.
      previous: Those of the earlier frame.
      steps: How many steps of 0.1 s earlier it is, at least 1.

    Returns:
      Whether the root mean square of each difference stays within its bound, in the order of `FEATURES`; these roots.

    Raises:
      ValueError: The drives hardly overlap.

    Source: NAVSIM v2.2 `ego_is_two_frame_extended_comfort`.
    """
    samples = NUM_STATES - steps
    if steps < 1 or samples < JERK_WINDOW:
        raise ValueError(f"steps={steps} must be between 1 and {NUM_STATES - JERK_WINDOW}.")
    difference = _features(current[..., :samples, :]) - _features(previous[..., steps:, :])
    roots = jnp.sqrt(jnp.mean(difference**2, axis=-1))
    return roots <= jnp.asarray(MOST, roots.dtype), roots


def _features(states: Float[Array, "*n N 11"]) -> Float[Array, "*n 4 N"]:
    """The signals that are compared."""
    samples = states.shape[-2]

    def smooth(signal: Array, window: int, derivative: int) -> Array:
        filtered = jnp.moveaxis(apply_matrix(savitzky_golay(window, 2, derivative, samples), signal), 0, -1)
        return jnp.round(filtered, DECIMALS) if filtered.dtype == jnp.float64 else filtered

    heading = unwrap(states[..., EgoState.HEADING])
    heading = heading - heading[..., :1]  # Derivatives do not see it, and small numbers round less.
    acceleration = jnp.hypot(states[..., EgoState.ACCELERATION_X], states[..., EgoState.ACCELERATION_Y])
    acceleration = smooth(acceleration, ACCELERATION_WINDOW, 0)
    return jnp.stack(
        [
            acceleration,
            smooth(acceleration, JERK_WINDOW, 1),
            smooth(heading, YAW_WINDOW, 1),
            smooth(heading, YAW_WINDOW, 2),
        ],
        axis=-2,
    )
