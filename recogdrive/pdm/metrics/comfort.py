"""Comfort: six signals of the simulated drive that must stay within bounds.

Every filter is a Savitzky-Golay one over the 41 states, which makes it a constant matrix.
Source: NAVSIM `pdm_comfort_metrics.py`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recogdrive.pdm.angles import unwrap
from recogdrive.pdm.linear import apply_matrix
from recogdrive.pdm.state import NUM_STATES, STEP_S, EgoState

CHECKS = (
    "longitudinal_acceleration",
    "lateral_acceleration",
    "jerk",
    "longitudinal_jerk",
    "yaw_acceleration",
    "yaw_rate",
)
LOWER_BOUNDS = (-4.05, -4.89, -8.37, -4.13, -1.93, -0.95)
UPPER_BOUNDS = (2.40, 4.89, 8.37, 4.13, 1.93, 0.95)
"""In m/s^2, m/s^2, m/s^3, m/s^3, rad/s^2 and rad/s; a signal on its bound fails."""
DECIMALS = 8


def savitzky_golay(
    window: int, order: int, derivative: int, num_samples: int = NUM_STATES, step_s: float = STEP_S
) -> Float[np.ndarray, "N N"]:
    """Matrix that filters N samples: a least-squares polynomial through each window, or its derivative, at its middle.

    The first and last `window // 2` samples take the polynomial of the first or last window instead, each at its own
    place. An even window has no middle sample; its polynomial is evaluated half a step after the one left of it.

    Args:
      window: Samples in a window, at most N.
      order: Of the polynomial, below `window`.
      derivative: Which one to evaluate; 0 smooths.
      num_samples: N.
      step_s: Between samples.

    Raises:
      ValueError: The window does not fit into the samples or cannot determine the polynomial.

    Source: `scipy.signal.savgol_filter` with `mode="interp"`.
    """
    if not order < window <= num_samples:
        raise ValueError(f"window={window} must exceed order={order} and must not exceed num_samples={num_samples}.")
    fit = np.linalg.pinv(np.vander(np.arange(window) - (window - 1) / 2, order + 1, increasing=True))
    powers = np.arange(order + 1)
    factors = np.array([np.prod(power - np.arange(derivative)) for power in powers]) / step_s**derivative
    left, half = (window - 1) // 2, window // 2
    filters = np.zeros((num_samples, num_samples))
    for i in range(num_samples):
        start = min(max(i - left, 0), num_samples - window)
        inner = half <= i < num_samples - half
        position = 0.0 if inner else i - start - (window - 1) / 2
        evaluation = factors * position ** np.maximum(powers - derivative, 0)
        filters[i, start : start + window] = evaluation @ fit
    return filters


_SMOOTH = savitzky_golay(NUM_STATES, 2, 0)
_SLOPE = savitzky_golay(NUM_STATES, 2, 1)
_SMOOTH_SHORT = savitzky_golay(8, 2, 0)
# Upstream asks for windows of 41 here too, but the argument is lost on the way.
_YAW_ACCELERATION = savitzky_golay(5, 3, 2)
_YAW_RATE = savitzky_golay(5, 2, 1)


def comfort(
    states: Float[Array, "*n 41 11"],
) -> tuple[Bool[Array, "*n 6"], Float[Array, "*n 6"], Float[Array, "*n 6"]]:
    """Which checks a simulated drive passes, and the extremes of the checked signals.

    In float64 signals are rounded to 8 decimals before the comparison, as upstream does; float32 values of these sizes
    are coarser than that already and stay as they are.

    Args:
      states: Columns of `EgoState`; the first one counts with its logged accelerations, later ones have none across.

    Returns:
      Whether each signal stays strictly within its bounds, its least and its largest value, in the order of `CHECKS`.
    """
    acceleration_x = states[..., EgoState.ACCELERATION_X]
    acceleration_y = states[..., EgoState.ACCELERATION_Y]
    heading = unwrap(states[..., EgoState.HEADING])
    heading = heading - heading[..., :1]  # Derivatives do not see it, and small numbers round less.
    jerk = _filter(_SMOOTH_SHORT, jnp.hypot(acceleration_x, acceleration_y))
    longitudinal_jerk = _filter(_SMOOTH_SHORT, acceleration_x)
    signals = jnp.stack(
        [
            _filter(_SMOOTH, acceleration_x),
            _filter(_SMOOTH, acceleration_y),
            _filter(_SLOPE, jerk),
            _filter(_SLOPE, longitudinal_jerk),
            _filter(_YAW_ACCELERATION, heading),
            _filter(_YAW_RATE, heading),
        ],
        axis=-2,
    )
    lower, upper = jnp.asarray(LOWER_BOUNDS, states.dtype), jnp.asarray(UPPER_BOUNDS, states.dtype)
    least, largest = signals.min(-1), signals.max(-1)
    return (lower < least) & (largest < upper), least, largest


def _filter(matrix: Float[np.ndarray, "41 41"], signal: Float[Array, "*n 41"]) -> Float[Array, "*n 41"]:
    filtered = jnp.moveaxis(apply_matrix(matrix, signal), 0, -1)
    return jnp.round(filtered, DECIMALS) if filtered.dtype == jnp.float64 else filtered
