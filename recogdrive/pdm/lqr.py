"""The batch LQR tracker: what speed and curvature poses ask for, and the commands that steer a car along them.

Source: NAVSIM `BatchLQRTracker` and `batch_lqr_utils.py`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from recogdrive.geometry import Pose
from recogdrive.pdm.angles import wrap_nearest
from recogdrive.pdm.linear import apply_matrix
from recogdrive.pdm.state import NUM_STEPS, STEP_S, WHEEL_BASE_M

TRACKING_STEPS = 10
"""Steps that one control decision looks ahead."""
STOP_SPEED_MPS = 0.2
"""Both the car and its reference at or below: hold the wheel and brake gently."""

_STOP_GAIN = 0.5
_SPEED_COST, _ACCELERATION_COST = 10.0, 1.0
_LATERAL_COST, _HEADING_COST, _STEERING_RATE_COST = 1.0, 10.0, 1.0
_SPEED_PENALTY = 1e-4
_CURVATURE_PENALTY = 1e-2
_INITIAL_CURVATURE_PENALTY = 1e-10


def _speed_smoother() -> Float[np.ndarray, "40 40"]:
    """Matrix from displacement per step to the reference speed.

    Least squares on the displacements with a penalty that upstream calls one on jerk. Its difference matrix is filled
    by two overlapping assignments of which the second erases the first, so that all rows but the last punish
    acceleration itself. Kept: a true second difference changes speeds by metres per second.
    """
    rows = np.eye(NUM_STEPS - 2, NUM_STEPS, 1) - np.eye(NUM_STEPS - 2, NUM_STEPS)
    rows[-1, -3:] = 1, -2, 1
    # Both terms in units of displacement: an acceleration is a speed difference over one step.
    penalty = _SPEED_PENALTY / STEP_S**4
    return np.linalg.inv(np.eye(NUM_STEPS) + penalty * rows.T @ rows)


def _rollout_weights() -> Float[np.ndarray, "10 5"]:
    """What a lookahead's heading rates contribute to its final errors, as sums over its steps m.

    In the lookahead the speed is u_m = v + q m with q = 0.1 a. A heading rate g_m (radians per metre) turns the
    heading error by dt u_m g_m, and that moves the lateral error by dt times the way T_m = u_{m+1} + ... + u_9 still
    ahead. Both u_m and u_m T_m are polynomials in v and q; the columns are their coefficients: 1, m of u_m for v and
    q; then of u_m T_m for v^2, v q, q^2.
    """
    m = np.arange(TRACKING_STEPS, dtype=np.float64)
    steps_left = TRACKING_STEPS - 1 - m
    indices_left = m[::-1].cumsum()[::-1] - m
    return np.stack([np.ones_like(m), m, steps_left, indices_left + m * steps_left, m * indices_left], axis=-1)


def _windows() -> Float[np.ndarray, "40 10"]:
    """Index of the curvature in each lookahead: steps i ... i + 9, the last one repeated."""
    return np.minimum(np.arange(NUM_STEPS)[:, None] + np.arange(TRACKING_STEPS), NUM_STEPS - 1)


_SMOOTHER = _speed_smoother()
_WEIGHTS = _rollout_weights()
_CONSTANT_RATE: list[float] = _WEIGHTS.sum(0).tolist()
"""Sums for a heading rate of 1."""
_RISING_RATE: list[float] = (_WEIGHTS.T @ np.arange(TRACKING_STEPS)).tolist()
"""Sums for a heading rate of m."""
_WINDOW_SUMS = np.einsum("iwk,wc->ick", np.eye(NUM_STEPS)[_windows()], _WEIGHTS)
"""From the 40 curvatures to the sums of each lookahead."""


class Reference(NamedTuple):
    """What the tracker follows in one step: the pose it should have now, curvature over and speed after its lookahead.

    Attributes:
      x: (*n,) metres.
      y: (*n,) metres.
      heading: (*n,) radians.
      cos: (*n,) of the heading.
      sin: (*n,) of the heading.
      speed: (*n,) m/s, negative when reversing.
      curvature: (5, *n) sums over the lookahead, see `_rollout_weights`.
    """

    x: Float[Array, "*n"]
    y: Float[Array, "*n"]
    heading: Float[Array, "*n"]
    cos: Float[Array, "*n"]
    sin: Float[Array, "*n"]
    speed: Float[Array, "*n"]
    curvature: Float[Array, "5 *n"]


def profiles(poses: Float[Array, "*n 41 3"]) -> tuple[Float[Array, "*n 40"], Float[Array, "*n 40"]]:
    """Speeds in m/s (negative when reversing) and curvatures in 1/m that lead along poses 0.1 s apart.

    Source: NAVSIM `get_velocity_curvature_profiles_with_derivatives_from_poses`.
    """
    heading = poses[..., Pose.HEADING]
    dx, dy = jnp.diff(poses[..., Pose.X]), jnp.diff(poses[..., Pose.Y])
    forward = dx * jnp.cos(heading[..., :-1]) + dy * jnp.sin(heading[..., :-1])
    speeds = jnp.moveaxis(apply_matrix(_SMOOTHER, forward / STEP_S), 0, -1)
    return speeds, _curvatures(wrap_nearest(jnp.diff(heading)), speeds)


def _curvatures(turns: Float[Array, "*n 40"], speeds: Float[Array, "*n 40"]) -> Float[Array, "*n 40"]:
    """Least-squares curvature with a penalty on its change.

    Eliminates the tridiagonal normal equations in a form without cancellation: a standing car, for which they are
    singular in float32, gets curvature 0.
    """
    smoothing = _CURVATURE_PENALTY / STEP_S**2
    ways = jnp.moveaxis(STEP_S * speeds, -1, 0)
    squares, products = ways**2, ways * jnp.moveaxis(turns, -1, 0)

    def eliminate(carry: tuple[Array, Array], step: tuple[Array, Array]) -> tuple:
        pivot, side = carry
        share = smoothing / (smoothing + pivot)
        carry = (pivot * share + step[0], side * share + step[1])
        return carry, carry

    first = (squares[0] + _INITIAL_CURVATURE_PENALTY, products[0])
    carry, rest = lax.scan(eliminate, first, (squares[1:], products[1:]))
    pivots, sides = (jnp.concatenate([start[None], later[:-1]]) for start, later in zip(first, rest, strict=True))
    end = carry[1] / carry[0]

    def substitute(curvature: Array, step: tuple[Array, Array]) -> tuple:
        pivot, side = step
        curvature = (side + smoothing * curvature) / (pivot + smoothing)
        return curvature, curvature

    _, earlier = lax.scan(substitute, end, (pivots, sides), reverse=True)
    return jnp.moveaxis(jnp.concatenate([earlier, end[None]]), 0, -1)


def references(
    poses: Float[Array, "*n 41 3"], speeds: Float[Array, "*n 40"], curvatures: Float[Array, "*n 40"]
) -> Reference:
    """References of all 40 steps; the lookahead of step i ends at step i + 10, or at the last one.

    Returns:
      `Reference` whose arrays have the step in front: (40, *n), curvature (40, 5, *n).
    """
    x, y, heading = (jnp.moveaxis(poses[..., :-1, column], -1, 0) for column in Pose)
    end = np.minimum(np.arange(NUM_STEPS) + TRACKING_STEPS, NUM_STEPS - 1)
    flat = apply_matrix(_WINDOW_SUMS.reshape(-1, NUM_STEPS), curvatures)
    sums = flat.reshape(NUM_STEPS, -1, *flat.shape[1:])
    speed = jnp.moveaxis(speeds, -1, 0)[end]
    return Reference(x, y, heading, jnp.cos(heading), jnp.sin(heading), speed, sums)


def commands(
    x: Float[Array, "*n"],
    y: Float[Array, "*n"],
    heading: Float[Array, "*n"],
    speed: Float[Array, "*n"],
    steering: Float[Array, "*n"],
    reference: Reference,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """One decision of the tracker; neither command is clipped.

    Args:
      x: Rear axle, metres.
      y: Rear axle, metres.
      heading: Radians.
      speed: Along the car, m/s.
      steering: Angle of the front wheels, radians.
      reference: What to follow.

    Returns:
      Acceleration command in m/s^2 and steering-rate command in rad/s.
    """
    error = speed - reference.speed
    lookahead_s = TRACKING_STEPS * STEP_S
    gain = lookahead_s * _SPEED_COST / (lookahead_s**2 * _SPEED_COST + _ACCELERATION_COST)
    stopping = (reference.speed <= STOP_SPEED_MPS) & (speed <= STOP_SPEED_MPS)
    acceleration = -gain * error
    rate = _steering_rate(x, y, heading, speed, steering, acceleration, reference)
    return jnp.where(stopping, -_STOP_GAIN * error, acceleration), jnp.where(stopping, 0.0, rate)


def _steering_rate(
    x: Array, y: Array, heading: Array, speed: Array, steering: Array, acceleration: Array, reference: Reference
) -> Array:
    """One LQR step on lateral and heading error at the end of the lookahead."""
    gained = STEP_S * acceleration

    def effect(sums: list[Array]) -> tuple[Array, Array]:
        """Lateral and heading error that a heading rate with these sums leads to."""
        lateral = speed * (speed * sums[2] + gained * sums[3]) + gained**2 * sums[4]
        return STEP_S**2 * lateral, STEP_S * (speed * sums[0] + gained * sums[1])

    lateral_error = (y - reference.y) * reference.cos - (x - reference.x) * reference.sin
    heading_error = wrap_nearest(heading - reference.heading)
    bend = steering / WHEEL_BASE_M
    sums = [bend * unit - curvature for unit, curvature in zip(_CONSTANT_RATE, reference.curvature, strict=True)]
    lateral, turned = effect(sums)
    way = STEP_S * (speed * _CONSTANT_RATE[0] + gained * _CONSTANT_RATE[1])
    lateral = lateral_error + way * heading_error + lateral
    heading_end = wrap_nearest(heading_error + turned)
    # Response to a unit command: the wheels turn by 0.1 s times the rate in every step.
    lateral_unit, heading_unit = effect([unit * STEP_S / WHEEL_BASE_M for unit in _RISING_RATE])
    cost = _LATERAL_COST * lateral_unit**2 + _HEADING_COST * heading_unit**2 + _STEERING_RATE_COST
    return -(_LATERAL_COST * lateral_unit * lateral + _HEADING_COST * heading_unit * heading_end) / cost
