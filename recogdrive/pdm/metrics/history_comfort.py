"""History comfort: whether accelerations, jerks and turning stay within bounds, the way up to now included."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.angles import unwrap
from recogdrive.pdm.linear import apply_matrix
from recogdrive.pdm.metrics.comfort import DECIMALS, LOWER_BOUNDS, UPPER_BOUNDS, savitzky_golay
from recogdrive.pdm.state import REAR_AXLE_TO_CENTER_M, EgoState

ACCELERATION_WINDOW = 8
JERK_WINDOW = 15
YAW_WINDOW = 5
"""Windows of the Savitzky-Golay filters in samples."""


class History(NamedTuple):
    """What was driven before now, every 0.1 s, in H columns that end with the last sample before the simulation.

    Attributes:
      heading: (S, H) radians; columns before the first sample repeat it.
      acceleration_x: (S, H) m/s^2 along the heading, likewise.
      acceleration_y: (S, H) m/s^2 to the left.
      samples: (S,) int32, how many of the columns are samples, from the last one back.
    """

    heading: Float[Array, "S H"]
    acceleration_x: Float[Array, "S H"]
    acceleration_y: Float[Array, "S H"]
    samples: Int[Array, "S"]


def history_comfort(
    states: Float[Array, "S G 41 11"], history: History
) -> tuple[Bool[Array, "S G 6"], Float[Array, "S G 6"], Float[Array, "S G 6"]]:
    """Which of the six checks of `comfort.CHECKS` a drive passes when what was driven before is put in front of it.

    Accelerations are those of the box's centre, but that of the jerk's magnitude is of the rear axle. In the reference
    the shift to the centre adds c (w^2 + dw/dt) along the heading and nothing across. As in `comfort`, signals are
    rounded to 8 decimals in float64 alone.

    Args:
      states: Columns of `EgoState`.
      history: Of each scene; the time between its last sample and the simulation counts as one step.

    Returns:
      Whether each signal stays strictly within its bounds, its least and its largest value.

    Source: NAVSIM v2.2 `PDMScorer._calculate_history_comfort`, `ego_is_comfortable`.
    """
    yaw_rate, yaw_acceleration = states[..., EgoState.YAW_RATE], states[..., EgoState.YAW_ACCELERATION]
    shift = REAR_AXLE_TO_CENTER_M * (yaw_rate**2 + yaw_acceleration)
    rear_x = _joined(history.acceleration_x, states[..., EgoState.ACCELERATION_X])
    # The history is interpolated without its turning, so that nothing is added there.
    center_x = _joined(history.acceleration_x, states[..., EgoState.ACCELERATION_X] + shift)
    rear_y = _joined(history.acceleration_y, states[..., EgoState.ACCELERATION_Y])
    heading = unwrap(_joined(history.heading, states[..., EgoState.HEADING]))
    heading = heading - heading[..., :1]  # Derivatives do not see it, and small numbers round less.

    first = history.heading.shape[-1] - history.samples[:, None]  # (S, 1): column of the first sample.

    def smooth(signal: Array, window: int, order: int, derivative: int) -> Array:
        return _filter(signal, first, window, order, derivative)

    longitudinal = smooth(center_x, ACCELERATION_WINDOW, 2, 0)
    magnitude = smooth(jnp.hypot(rear_x, rear_y), ACCELERATION_WINDOW, 2, 0)
    signals = jnp.stack(
        [
            longitudinal,
            smooth(rear_y, ACCELERATION_WINDOW, 2, 0),
            smooth(magnitude, JERK_WINDOW, 2, 1),
            smooth(longitudinal, JERK_WINDOW, 2, 1),
            smooth(heading, YAW_WINDOW, 3, 2),
            smooth(heading, YAW_WINDOW, 2, 1),
        ],
        axis=-2,
    )
    is_sample = (jnp.arange(signals.shape[-1]) >= first[..., None])[:, :, None]
    lower, upper = jnp.asarray(LOWER_BOUNDS, states.dtype), jnp.asarray(UPPER_BOUNDS, states.dtype)
    least = jnp.where(is_sample, signals, jnp.inf).min(-1)
    largest = jnp.where(is_sample, signals, -jnp.inf).max(-1)
    return (lower < least) & (largest < upper), least, largest


def _joined(past: Float[Array, "S H"], simulated: Float[Array, "S G 41"]) -> Float[Array, "S G N"]:
    """A signal from the first column of the history to the end of the simulation."""
    past = jnp.broadcast_to(past[:, None], (*simulated.shape[:2], past.shape[-1]))
    return jnp.concatenate([past, simulated], axis=-1)


def _filter(
    signal: Float[Array, "S G N"], first: Int[Array, "S 1"], window: int, order: int, derivative: int
) -> Float[Array, "S G N"]:
    """`savitzky_golay` of the samples from column `first` on, as if the signal began there."""
    columns = signal.shape[-1]
    filtered = jnp.moveaxis(apply_matrix(savitzky_golay(window, order, derivative, columns), signal), 0, -1)
    # The columns after the first one take the polynomial of the first window.
    head = np.arange(window)[None, None] + first[..., None]
    head = jnp.take_along_axis(signal, jnp.broadcast_to(head, (*signal.shape[:2], window)), axis=-1)
    edge = apply_matrix(savitzky_golay(window, order, derivative, window)[: window // 2], head)
    place = jnp.arange(columns)[None, None] - first[..., None]
    for i in range(window // 2):
        filtered = jnp.where(place == i, edge[i][..., None], filtered)
    return jnp.round(filtered, DECIMALS) if filtered.dtype == jnp.float64 else filtered
