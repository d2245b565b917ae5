"""Distances along a route."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def project(
    points: Float[Array, "*s G 2"], polyline: Float[Array, "*s C 2"], num_points: Int[Array, "*s"]
) -> Float[Array, "*s G"]:
    """Distance along a polyline of the place on it that is nearest to a point.

    Of places equally near the one on the first segment counts. Points before the start or beyond the end fall on these.
    Consecutive points may coincide; a line of fewer than two points has only the distance 0.

    Args:
      points: G points for each of the lines, metres.
      polyline: Lines in one frame with the points, padded at their ends with any finite values.
      num_points: How many points of each line are real.

    Source: shapely's `LineString.project`.
    """
    start, along = polyline[..., :-1, :], jnp.diff(polyline, axis=-2)
    real = jnp.arange(1, polyline.shape[-2]) < num_points[..., None]
    squared = jnp.where(real, (along**2).sum(-1), 0.0)
    length = jnp.sqrt(squared)
    before = jnp.cumsum(length, axis=-1) - length
    segments = jnp.stack([start[..., 0], start[..., 1], along[..., 0], along[..., 1], squared])
    gap, _ = _nearest_on(points, segments[..., None, :])
    nearest = jnp.argmin(jnp.where(real[..., None, :], gap, jnp.inf), axis=-1)
    chosen = jnp.take_along_axis(jnp.concatenate([segments, before[None], length[None]]), nearest[None], axis=-1)
    _, fraction = _nearest_on(points, chosen[:5, ..., None])
    return chosen[5] + fraction[..., 0] * chosen[6]


def distance(
    points: Float[Array, "*s G 2"], polyline: Float[Array, "*s C 2"], num_points: Int[Array, "*s"]
) -> Float[Array, "*s G"]:
    """Distance of points from a polyline in metres; arguments as in `project`.

    Source: shapely's `distance` of a point and a `LineString`.
    """
    start, along = polyline[..., :-1, :], jnp.diff(polyline, axis=-2)
    real = jnp.arange(1, polyline.shape[-2]) < num_points[..., None]
    segments = jnp.stack([start[..., 0], start[..., 1], along[..., 0], along[..., 1], (along**2).sum(-1)])
    gap, _ = _nearest_on(points, segments[..., None, :])
    return jnp.sqrt(jnp.where(real[..., None, :], gap, jnp.inf).min(axis=-1))


def _nearest_on(
    points: Float[Array, "*s G 2"], segments: Float[Array, "5 *s #G C"]
) -> tuple[Float[Array, "*s G C"], Float[Array, "*s G C"]]:
    """Squared distance to segments (start x, y; way x, y; its square), and the fraction of the way where that is."""
    x, y, along_x, along_y, squared = segments
    offset_x, offset_y = points[..., 0, None] - x, points[..., 1, None] - y
    inner = offset_x * along_x + offset_y * along_y
    fraction = jnp.where(squared > 0, jnp.clip(inner / jnp.where(squared > 0, squared, 1.0), 0.0, 1.0), 0.0)
    return (offset_x - fraction * along_x) ** 2 + (offset_y - fraction * along_y) ** 2, fraction
