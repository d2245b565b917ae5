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
    offset_x = points[..., :, None, 0] - start[..., None, :, 0]
    offset_y = points[..., :, None, 1] - start[..., None, :, 1]
    along_x, along_y = along[..., None, :, 0], along[..., None, :, 1]
    inner = offset_x * along_x + offset_y * along_y
    divisor = jnp.where(squared > 0, squared, 1.0)[..., None, :]
    fraction = jnp.where(squared[..., None, :] > 0, jnp.clip(inner / divisor, 0.0, 1.0), 0.0)
    gap = (offset_x - fraction * along_x) ** 2 + (offset_y - fraction * along_y) ** 2
    nearest = jnp.argmin(jnp.where(real[..., None, :], gap, jnp.inf), axis=-1)[..., None]
    place = before[..., None, :] + fraction * length[..., None, :]
    return jnp.take_along_axis(place, nearest, axis=-1)[..., 0]
