"""Curves that roads are made of: lines of poses (x, y, heading) in driving direction.

A line is (L, 3) float64 in metres and radians; headings are tangents and not wrapped, so they can be interpolated.
Two vertices suffice for a straight line. Curvature is continuous and zero at both ends of every curve, so that curves
join each other and straight lines without a jump of the steering angle.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from recogdrive.geometry import from_frame

VERTEX_SPACING_M = 1.5
"""Of curved lines; offsets to the outside of a bend stay below 2 m."""
EASING_M = 12.0
"""Longest stretch over which a bend's curvature builds up."""
# Distances of the second and third control point from the end, as fractions of the chord. For a quarter turn they give
# a smallest radius of 0.92 times that of the circle through the same ends (grid search over both).
_NEAR, _FAR = 0.14, 0.42


def straight(start: Float[np.ndarray, "3"], length_m: float) -> Float[np.ndarray, "2 3"]:
    """Straight line of the given length from the pose `start`."""
    x, y, heading = start
    return np.array([[x, y, heading], [x + length_m * np.cos(heading), y + length_m * np.sin(heading), heading]])


def bend(start: Float[np.ndarray, "3"], radius_m: float, angle_rad: float) -> Float[np.ndarray, "L 3"]:
    """Bend by `angle_rad` (positive to the left) whose curvature rises linearly to 1 / radius and falls likewise."""
    swept = radius_m * abs(angle_rad)
    easing = min(EASING_M, 0.6 * swept)
    length = swept + easing
    steps = max(2, int(np.ceil(length / VERTEX_SPACING_M)))
    # Vertices and the midpoints between them: Simpson's rule then places the vertices to better than a micrometre.
    s = np.linspace(0.0, length, 2 * steps + 1)
    turned = np.where(s < easing, s**2 / (2 * easing), s - easing / 2)
    turned = np.where(s > length - easing, swept - (length - s) ** 2 / (2 * easing), turned)
    heading = start[2] + np.sign(angle_rad) / radius_m * turned
    direction = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    steps_xy = (direction[:-1:2] + 4 * direction[1::2] + direction[2::2]) * (length / steps / 6)
    xy = np.concatenate([np.zeros((1, 2)), np.cumsum(steps_xy, axis=0)]) + start[:2]
    return np.concatenate([xy, heading[::2, None]], axis=-1)


def join(start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"]) -> Float[np.ndarray, "L 3"]:
    """Quintic Bezier curve between two poses with zero curvature at both; ends are met exactly."""
    chord = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    tangents = np.array([[np.cos(p[2]), np.sin(p[2])] for p in (start, end)])
    reach = np.array([[0.0], [_NEAR], [_FAR]]) * chord
    control = np.concatenate([start[:2] + reach * tangents[0], end[:2] - reach[::-1] * tangents[1]])
    basis, slope = _bernstein(max(4, int(np.ceil(1.15 * chord / VERTEX_SPACING_M))))
    xy, dxy = basis @ control, slope @ np.diff(control, axis=0)
    heading = start[2] + np.unwrap(np.arctan2(dxy[:, 1], dxy[:, 0]) - start[2])
    xy[0], xy[-1] = start[:2], end[:2]
    return np.concatenate([xy, (heading - 2 * np.pi * np.round((heading[0] - start[2]) / (2 * np.pi)))[:, None]], -1)


@lru_cache(maxsize=256)
def _bernstein(steps: int) -> tuple[Float[np.ndarray, "L 6"], Float[np.ndarray, "L 5"]]:
    """Bernstein polynomials of degree 5 and, up to a factor, of degree 4 on `steps` + 1 even parameters."""
    t = np.linspace(0.0, 1.0, steps + 1)[:, None]
    quintic = np.array([1, 5, 10, 10, 5, 1]) * t ** np.arange(6) * (1 - t) ** np.arange(5, -1, -1)
    quartic = np.array([1, 4, 6, 4, 1]) * t ** np.arange(5) * (1 - t) ** np.arange(4, -1, -1)
    return quintic, quartic


def offset(line: Float[np.ndarray, "L 3"], distance_m: float) -> Float[np.ndarray, "L 3"]:
    """Parallel line at `distance_m` to the left (negative: to the right)."""
    moved = line.copy()
    moved[:, 0] -= distance_m * np.sin(line[:, 2])
    moved[:, 1] += distance_m * np.cos(line[:, 2])
    return moved


def reverse(line: Float[np.ndarray, "L 3"]) -> Float[np.ndarray, "L 3"]:
    """The same line driven the other way."""
    back = line[::-1].copy()
    back[:, 2] += np.pi
    return back


def place_end(line: Float[np.ndarray, "L 3"], end: Float[np.ndarray, "3"]) -> Float[np.ndarray, "L 3"]:
    """Moves a line as a rigid body so that its last pose becomes `end`."""
    turn = end[2] - line[-1, 2]
    cos, sin = np.cos(turn), np.sin(turn)
    away = line[:, :2] - line[-1, :2]
    moved = np.stack([cos * away[:, 0] - sin * away[:, 1], sin * away[:, 0] + cos * away[:, 1]], axis=-1) + end[:2]
    moved[-1] = end[:2]
    return np.concatenate([moved, line[:, 2:] + turn], axis=-1)


def chain(*lines: Float[np.ndarray, "_ 3"]) -> Float[np.ndarray, "L 3"]:
    """One line from several that follow each other; each shared vertex is kept once."""
    return np.concatenate([lines[0], *(line[1:] for line in lines[1:])])


def arc_length(line: Float[np.ndarray, "L _"]) -> Float[np.ndarray, "L"]:
    """Distance of every vertex from the first, along the line's chords."""
    along = np.zeros(len(line))
    np.cumsum(np.hypot(line[1:, 0] - line[:-1, 0], line[1:, 1] - line[:-1, 1]), out=along[1:])
    return along


def densify(line: Float[np.ndarray, "2 3"], spacing_m: float = 2.0) -> Float[np.ndarray, "L 3"]:
    """Straight line of two vertices with vertices at most `spacing_m` apart; other lines are returned as they are."""
    if len(line) != 2:
        return line
    step = line[1] - line[0]
    parts = max(1, int(np.ceil(np.hypot(step[0], step[1]) / spacing_m - 1e-9)))
    dense = line[0] + (np.arange(parts + 1) / parts)[:, None] * step
    dense[-1] = line[1]
    return dense


def as_centerline(line: Float[np.ndarray, "L 3"]) -> Float[np.ndarray, "M 3"]:
    """Vertices at most 2 m apart with the heading of the segment that starts there, the last repeated.

    Source: nuPlan's discrete baseline paths.
    """
    centerline = densify(line).copy()
    step = centerline[1:, :2] - centerline[:-1, :2]
    centerline[:-1, 2] = np.arctan2(step[:, 1], step[:, 0])
    centerline[-1, 2] = centerline[-2, 2]
    return centerline


def segment(start: Float[np.ndarray, "3"], along_m: float, across_m: float) -> Float[np.ndarray, "3"]:
    """The pose `along_m` ahead and `across_m` to the left of another, with the same heading."""
    return from_frame(np.array([along_m, across_m, 0.0]), start)
