"""Which parts of the map the footprint is on, and the drivable-area score."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.map import MapArrays, any_of, polygons_at


class Areas(NamedTuple):
    """Where S x G egos are at each of 41 steps.

    Attributes:
      several_lanes: (S, G, 41) corners on more than one lane and no lane under all of them.
      corner_off: (S, G, 41, 4) whether each corner is in no drivable polygon.
      oncoming: (S, G, 41) centre in no lane of the route.
      intersection: (S, G, 41) rear axle in an intersection.
      center_intersection: (S, G, 41) centre in an intersection.
    """

    several_lanes: Bool[Array, "S G 41"]
    corner_off: Bool[Array, "S G 41 4"]
    oncoming: Bool[Array, "S G 41"]
    intersection: Bool[Array, "S G 41"]
    center_intersection: Bool[Array, "S G 41"]

    @property
    def off_road(self) -> Bool[Array, "S G 41"]:
        """At least one corner in no drivable polygon; different corners may use different polygons."""
        return self.corner_off.any(axis=-1)


def areas(
    maps: MapArrays,
    rear_axles: Float[Array, "S G 41 2"],
    centers: Float[Array, "S G 41 2"],
    corners: Float[Array, "S G 41 4 2"],
) -> Areas:
    """Looks up corners, centre and rear axle of every footprint; all points in the local frame, metres.

    Source: NAVSIM `PDMScorer._calculate_ego_area`.
    """
    shape = centers.shape[:3]
    points = jnp.concatenate([corners, centers[..., None, :], rear_axles[..., None, :]], axis=-2)
    points = jnp.moveaxis(points, -2, 1)  # (S, 6, G, 41, 2)
    flat = points.reshape(shape[0], -1, 2)
    words = tuple(w.reshape(shape[0], 6, *shape[1:]) for w in polygons_at(maps, flat[..., 0], flat[..., 1]))
    of_corners, of_center = tuple(w[:, :4] for w in words), tuple(w[:, 4] for w in words)
    return Areas(
        several_lanes=_several_lanes(of_corners, maps),
        corner_off=jnp.moveaxis(~any_of(of_corners, maps.drivable_bits), 1, -1),
        oncoming=~any_of(of_center, maps.route_bits),
        intersection=any_of(tuple(w[:, 5] for w in words), maps.intersection_bits),
        center_intersection=any_of(of_center, maps.intersection_bits),
    )


def _several_lanes(of_corners: tuple[Array, ...], maps: MapArrays) -> Bool[Array, "S G 41"]:
    lanes, holds_all = jnp.int32(0), jnp.bool_(False)
    for w, word in enumerate(of_corners):
        mask = maps.lane_bits[:, w][:, None, None]
        under_some = (word[:, 0] | word[:, 1] | word[:, 2] | word[:, 3]) & mask
        lanes += jax.lax.population_count(under_some).astype(jnp.int32)
        holds_all |= (word[:, 0] & word[:, 1] & word[:, 2] & word[:, 3] & mask) != 0
    return (lanes > 1) & ~holds_all


def drivable_area(found: Areas, dtype: jnp.dtype) -> tuple[Float[Array, "S G"], Int[Array, "S G"], Int[Array, "S G"]]:
    """Drivable-area compliance: 0 where any corner ever leaves the drivable polygons, else 1.

    Returns:
      The score; the first step at which a corner is off, -1 for never; which corner, the first of several.

    Source: NAVSIM `PDMScorer._calculate_drivable_area_compliance`.
    """
    off = found.off_road
    ever = off.any(axis=-1)
    step = jnp.argmax(off, axis=-1)
    at_step = jnp.take_along_axis(found.corner_off, step[..., None, None], axis=-2)[..., 0, :]
    corner = jnp.argmax(at_step, axis=-1)
    return (
        jnp.where(ever, 0, 1).astype(dtype),
        jnp.where(ever, step, -1).astype(jnp.int32),
        jnp.where(ever, corner, -1).astype(jnp.int32),
    )
