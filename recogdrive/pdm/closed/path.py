"""A path to drive along: poses by the way travelled on it.

Source: NAVSIM `PDMPath`, `parallel_discrete_path`.
"""

import numpy as np
import shapely
import shapely.ops
from jaxtyping import Float

from recogdrive.geometry import Pose, wrap_angle

_LEAST_PROGRESS_M = 1e-5


class Path:
    """A polyline with headings.

    Args:
      poses: (C, 3) vertices, at least two; consecutive ones may coincide. Any one metric frame.

    Attributes:
      progress_m: (C,) way travelled at each vertex.
      line: The vertices as a shapely line.
    """

    def __init__(self, poses: Float[np.ndarray, "C 3"]) -> None:
        self._poses = poses.copy()
        self._poses[:, Pose.HEADING] = np.unwrap(poses[:, Pose.HEADING])
        steps = np.diff(poses[:, : Pose.HEADING], axis=0)
        self.progress_m = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
        self.line = shapely.linestrings(poses[:, : Pose.HEADING])

    @property
    def length_m(self) -> float:
        """Way from the first vertex to the last."""
        return float(self.progress_m[-1])

    def offset(self, left_m: float) -> "Path":
        """The path with every vertex moved to its left, headings unchanged."""
        poses = self._poses.copy()
        across = poses[:, Pose.HEADING] + np.pi / 2
        poses[:, Pose.X] += left_m * np.cos(across)
        poses[:, Pose.Y] += left_m * np.sin(across)
        return Path(poses)

    def interpolate(self, progress_m: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N 3"]:
        """Poses on the path, headings wrapped; beyond its ends, its ends."""
        clipped = np.clip(progress_m, _LEAST_PROGRESS_M, self.length_m)
        high = np.clip(np.searchsorted(self.progress_m, clipped), 1, len(self.progress_m) - 1)
        low = high - 1
        span = self.progress_m[high] - self.progress_m[low]
        fraction = (clipped - self.progress_m[low]) / np.where(span > 0, span, 1.0)
        poses = self._poses[low] + fraction[:, None] * (self._poses[high] - self._poses[low])
        poses[:, Pose.HEADING] = wrap_angle(poses[:, Pose.HEADING])
        return poses

    def project(self, points: np.ndarray) -> Float[np.ndarray, "N"]:
        """Way travelled at the place of the path nearest to each shapely point."""
        return shapely.line_locate_point(self.line, points)

    def part(self, start_m: float, end_m: float) -> shapely.LineString:
        """The vertices between two places; where there are fewer than two, the exact piece between them."""
        start_m, end_m = np.clip([start_m, end_m], 0.0, self.length_m)
        inside = (start_m <= self.progress_m) & (self.progress_m <= end_m)
        if inside.sum() > 1:
            return shapely.linestrings(self._poses[inside, : Pose.HEADING])
        return shapely.ops.substring(self.line, start_m, end_m)
