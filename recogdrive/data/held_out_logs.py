"""Parts of a split of logs: the scenes to train on, and those held out to validate on."""

import hashlib
import operator
from collections.abc import Sequence
from typing import NamedTuple

import gin

from recogdrive.data.samples import NavsimSplit, SceneSource, TimedScenes
from recogdrive.data.splits import OpenSource
from recogdrive.data.types import Scene
from recogdrive.suggestions import did_you_mean

PARTS = ("train", "held_out")
_HASHES = 1 << 64
_ROUNDING = 1e-9
"""Of a share times a number: a tenth of 30 are 3."""


@gin.register
class LogPart:
    """One part of a split: the scenes to train on, or those held out.

    From 1 / `held_out_share` logs on, whole logs are held out, chosen by a hash of their name: further logs move none
    from one part to the other, except where all would be in one. The share holds on average only.

    Of fewer logs, the end of each in time is held out. A scene looks 1.5 s back and 4 s ahead (5 s where its PDM score
    is computed from the log), so the last scenes to train on and the first ones held out show the same seconds: what is
    measured there is nearer to the training scenes than other drives are. `gap_scenes` scenes of each log between the
    parts belong to neither; of scenes every 0.5 s, 13 leave no frame in common. The default leaves out none, because a
    log of few scenes would hardly have any left.

    Args:
      source: Opens the split. Give both parts the same `gin.singleton` where it should be read once.
      part: "train" or "held_out".
      held_out_share: Share of the logs, or of each log's scenes, above 0 and below 1; the same for both parts.
      gap_scenes: See above; taken from the scenes to train on. Without effect where whole logs are held out.
      name: What to call the part in reports; by default after the source and the part.

    Attributes:
      name: As above.
      tokens: Those of the part's scenes, as the source has them, in its order.
      report: `scenes`, `logs`, and how many scenes of the source are in the `other_part` and in the `gap`.
      split: NAVSIM's split folder the scenes are from; empty for other scenes.

    Raises:
      ValueError: An argument is out of range, or the part is empty.
    """

    def __init__(
        self,
        source: OpenSource,
        part: str,
        held_out_share: float = 0.2,
        gap_scenes: int = 0,
        name: str | None = None,
    ) -> None:
        if part not in PARTS:
            raise ValueError(
                f"LogPart.part={part!r} must be one of {', '.join(map(repr, PARTS))}.{did_you_mean(str(part), PARTS)}"
            )
        if not 0 < held_out_share < 1:
            raise ValueError(f"LogPart.held_out_share={held_out_share!r} must be above 0 and below 1, e.g. 0.2.")
        if isinstance(gap_scenes, bool) or not isinstance(gap_scenes, int) or gap_scenes < 0:
            raise ValueError(f"LogPart.gap_scenes={gap_scenes!r} must be a whole number of at least 0.")
        self._source = source()
        self.name = name or f"{self._source.name}, {part}"
        self.split = self._source.split if isinstance(self._source, NavsimSplit) else ""
        parts = _divided(self._source, held_out_share, gap_scenes)
        self._indices = parts.train if part == "train" else parts.held_out
        if not self._indices:
            raise ValueError(
                f"The part {part!r} of {self._source.name}, which has {len(self._source)} scenes, is empty; choose "
                f"another held_out_share than {held_out_share:g}, or fewer gap_scenes than {gap_scenes}."
            )
        self.tokens = tuple(self._source.tokens[i] for i in self._indices)
        self.report = {
            "scenes": len(self._indices),
            "logs": len({self._source.log_of(i) for i in self._indices}),
            "other_part": len(parts.train) + len(parts.held_out) - len(self._indices),
            "gap": parts.gap,
        }

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Scene:
        """The scene at a position of the part; negative ones count from the end."""
        return self._source[self._place(index)]

    def log_of(self, index: int) -> str:
        """Name of the log that a scene comes from."""
        return self._source.log_of(self._place(index))

    def time_of(self, index: int) -> int:
        """Clock of a scene in microseconds; builds the scene where the source does not say."""
        return _time_of(self._source, self._place(index))

    def _place(self, index: int) -> int:
        """Position in the source."""
        return self._indices[operator.index(index)]


class _Parts(NamedTuple):
    """Positions in the source, in order, and how many are in the gap."""

    train: Sequence[int]
    held_out: Sequence[int]
    gap: int


def _divided(source: SceneSource, share: float, gap_scenes: int) -> _Parts:
    """Both parts of a source."""
    logs: dict[str, list[int]] = {}
    for index in range(len(source)):
        logs.setdefault(source.log_of(index), []).append(index)
    if len(logs) * share >= 1 - _ROUNDING:
        chosen = _held_out_logs(list(logs), share)
        held_out = [index for log in chosen for index in logs[log]]
        train = [index for log in logs if log not in chosen for index in logs[log]]
        return _Parts(sorted(train), sorted(held_out), 0)
    train, held_out = [], []
    for indices in logs.values():
        in_time = sorted(indices, key=lambda index: _time_of(source, index))
        first = len(in_time) - round(share * len(in_time))
        held_out += in_time[first:]
        # A log too short to hold anything out needs no gap.
        train += in_time[: max(first - gap_scenes, 0)] if first < len(in_time) else in_time
    return _Parts(sorted(train), sorted(held_out), len(source) - len(train) - len(held_out))


def _held_out_logs(logs: Sequence[str], share: float) -> frozenset[str]:
    """Logs whose hash is in the lowest share; with few logs these may be none or all, but one each there must be."""
    ranked = sorted(logs, key=_hash)
    count = sum(_hash(log) < share * _HASHES for log in logs)
    return frozenset(ranked[: min(max(count, 1), len(logs) - 1)])


def _hash(log: str) -> int:
    return int.from_bytes(hashlib.blake2b(log.encode(), digest_size=8).digest(), "big")


def _time_of(source: SceneSource, index: int) -> int:
    return source.time_of(index) if isinstance(source, TimedScenes) else int(source[index].timestamp_us)
