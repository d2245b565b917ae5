"""Which windows of a log's frames are scenes of a split."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

from recogdrive.data.scene_filter import SceneFilter


def filter_windows(
    raw: Sequence[Mapping[str, Any]],
    wanted: SceneFilter,
    listed: frozenset[str] | None,
    earlier: Set[str] = frozenset(),
    counts: Counter[str] | None = None,
) -> dict[str, int]:
    """Token -> first frame, for the windows of one log that pass a filter; of a token that occurs twice, the later one.

    Args:
      raw: Frames of `read_log`.
      wanted: The filter.
      listed: Its tokens, None for all.
      earlier: Tokens of other logs, which count towards the filter's `max_scenes`.
      counts: Where what does not pass is added up.

    Source: NAVSIM `filter_scenes`.
    """
    counts = Counter() if counts is None else counts
    starts: dict[str, int] = {}
    new = 0
    counts["frames"] += len(raw)
    for start in range(0, len(raw), wanted.frame_interval):
        if start + wanted.num_frames > len(raw):
            counts["dropped_short"] += 1
            continue
        current = raw[start + wanted.num_history_frames - 1]
        token = str(current["token"])
        if wanted.has_route and len(current["roadblock_ids"]) == 0:
            counts["dropped_no_route"] += 1
            continue
        if listed is not None and token not in listed:
            counts["dropped_not_listed"] += 1
            continue
        counts["repeated_tokens"] += token in starts
        new += token not in starts and token not in earlier
        starts[token] = start
        if wanted.max_scenes is not None and len(earlier) + new >= wanted.max_scenes:
            break
    return starts
