"""What surrounds the ego at every step of a scene: tracks of 2 Hz detections, interpolated to 0.1 s."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from recogdrive.data.types import FRAME_INTERVAL_S, Box, Detections
from recogdrive.geometry import Pose, wrap_angle
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.state import NUM_OBSERVED, STEP_S

STEPS_PER_FRAME = round(FRAME_INTERVAL_S / STEP_S)
OBSERVED_FRAMES = (NUM_OBSERVED - 1) // STEPS_PER_FRAME + 1
"""Frames from now to 5.0 s."""


class Observation(NamedTuple):
    """Tracks around the ego, columns in order of first appearance (frame by frame, then row by row).

    T = 51 steps of 0.1 s from now on, A tracks; float64, in the frame of the detections.

    Attributes:
      agent_poses: (T, A, 3) box centre x, y and heading in [-pi, pi]; zeros where absent.
      agent_valid: (T, A) whether the track is there.
      agent_sizes: (A, 2) length and width in metres, as first seen.
      agent_speeds: (A,) m/s when first seen.
      agent_types: (A,) int8 of `AgentClass`, as first seen.
      track_tokens: A strings.
    """

    agent_poses: Float[np.ndarray, "T A 3"]
    agent_valid: Bool[np.ndarray, "T A"]
    agent_sizes: Float[np.ndarray, "A 2"]
    agent_speeds: Float[np.ndarray, "A"]
    agent_types: Int[np.ndarray, "A"]
    track_tokens: tuple[str, ...]

    def take(self, columns: Int[np.ndarray, "N"]) -> "Observation":
        """Some of the tracks, in the given order."""
        return Observation(
            agent_poses=self.agent_poses[:, columns],
            agent_valid=self.agent_valid[:, columns],
            agent_sizes=self.agent_sizes[columns],
            agent_speeds=self.agent_speeds[columns],
            agent_types=self.agent_types[columns],
            track_tokens=tuple(self.track_tokens[column] for column in columns),
        )


def observe(frames: Sequence[Detections]) -> Observation:
    """Interpolates detections to the occupancy of every step.

    A track moves linearly between the frames that show it, gaps included, its heading the short way round; it is absent
    before its first and after its last frame. A track that a single frame shows stands there at all steps. Its speed,
    size and class are those of its first frame.

    Args:
      frames: Detections at 0, 0.5 ... 5.0 s from now, all in one frame; fewer where the future ends sooner.

    Raises:
      SceneError: No frame, more than 11, or one that shows a track twice.

    Source: NAVSIM `PDMObservation`, `MetricCacheProcessor._interpolate_gt_observation`.
    """
    if not 1 <= len(frames) <= OBSERVED_FRAMES:
        raise SceneError(
            f"{len(frames)} frames of detections: an observation takes 1 to {OBSERVED_FRAMES} at intervals of "
            f"{FRAME_INTERVAL_S} s, from now to 5.0 s"
        )
    rows, tokens = _rows_of_tracks(frames)
    boxes = np.concatenate([frame.boxes for frame in frames]).astype(np.float64)
    velocity = np.concatenate([frame.velocity for frame in frames]).astype(np.float64)
    classes = np.concatenate([frame.classes for frame in frames]).astype(np.int8)
    seen = rows >= 0
    first = rows[seen.argmax(axis=0), np.arange(len(tokens))]

    poses = boxes[:, [Box.X, Box.Y, Box.HEADING]][rows]
    agent_poses, agent_valid = _interpolate(poses, seen)
    alone = seen.sum(axis=0) == 1
    agent_poses[:, alone] = boxes[first[alone]][:, [Box.X, Box.Y, Box.HEADING]]
    agent_poses[..., Pose.HEADING] = wrap_angle(agent_poses[..., Pose.HEADING])
    agent_valid[:, alone] = True
    return Observation(
        agent_poses=np.where(agent_valid[..., None], agent_poses, 0.0),
        agent_valid=agent_valid,
        agent_sizes=boxes[first][:, [Box.LENGTH, Box.WIDTH]],
        agent_speeds=np.hypot(velocity[first, 0], velocity[first, 1]),
        agent_types=classes[first],
        track_tokens=tokens,
    )


def _rows_of_tracks(frames: Sequence[Detections]) -> tuple[Int[np.ndarray, "F A"], tuple[str, ...]]:
    """Where each track is in the stacked rows of all frames, -1 where it is not seen, and the tracks' tokens."""
    columns: dict[str, int] = {}
    frame_columns = [[columns.setdefault(t, len(columns)) for t in frame.track_tokens] for frame in frames]
    rows = np.full((len(frames), len(columns)), -1)
    start = 0
    for number, (frame, own) in enumerate(zip(frames, frame_columns, strict=True)):
        if len(set(own)) < len(own):
            twice = next(token for token in frame.track_tokens if frame.track_tokens.count(token) > 1)
            raise SceneError(
                f"frame {number} of the observation shows track {twice!r} more than once: give each object of a frame "
                f"a token of its own"
            )
        rows[number, own] = np.arange(start, start + len(own))
        start += len(own)
    return rows, tuple(columns)


def _interpolate(
    poses: Float[np.ndarray, "F A 3"], seen: Bool[np.ndarray, "F A"]
) -> tuple[Float[np.ndarray, "T A 3"], Bool[np.ndarray, "T A"]]:
    """Poses at every step between frames that show a track, headings unwrapped, and whether there are such frames."""
    num_frames = len(seen)
    frame = np.arange(num_frames)[:, None]
    before = np.maximum.accumulate(np.where(seen, frame, -1), axis=0)
    after = np.minimum.accumulate(np.where(seen, frame, num_frames)[::-1], axis=0)[::-1]

    # Frames without the track repeat a neighbour, so that unwrapping compares only poses that were seen.
    source = np.where(before >= 0, before, np.minimum(after, num_frames - 1))
    filled = np.take_along_axis(poses, source[..., None], axis=0)
    filled[..., Pose.HEADING] = np.unwrap(filled[..., Pose.HEADING], axis=0)

    step = np.arange(NUM_OBSERVED)
    ended = step > (num_frames - 1) * STEPS_PER_FRAME
    low = before[np.minimum(step // STEPS_PER_FRAME, num_frames - 1)]
    high = after[np.minimum(-(-step // STEPS_PER_FRAME), num_frames - 1)]
    valid = (low >= 0) & (high < num_frames) & ~ended[:, None]
    low, high = np.where(valid, low, 0), np.where(valid, high, 0)
    span = np.maximum(high - low, 1)
    weight = np.where(valid, (step[:, None] - low * STEPS_PER_FRAME) / (span * STEPS_PER_FRAME), 0.0)
    start = np.take_along_axis(filled, low[..., None], axis=0)
    end = np.take_along_axis(filled, high[..., None], axis=0)
    return start + weight[..., None] * (end - start), valid
