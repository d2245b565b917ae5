"""Which scenes of a split follow each other, and two-frame extended comfort of what one agent drives in them."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from recogdrive.pdm.state import NUM_STATES, STATE_SIZE, STEP_S, EgoState

MOST_GAP_US = 550_000
"""Source: NAVSIM v2.2 `infer_start_adjacent_mapping`."""

_STEP_US = round(STEP_S * 1e6)
_COMPARED = [EgoState.HEADING, EgoState.ACCELERATION_X, EgoState.ACCELERATION_Y]
"""Columns of a state that the comparison looks at."""
_AT_ONCE = 1024

Pairs = Mapping[int, tuple[int, int]]


def previous_frames(logs: Sequence[str], times_us: Sequence[int], usable: Sequence[bool]) -> Pairs:
    """Scene -> the scene just before it in its log, and how many steps of 0.1 s that was before.

    There is none where the scene before started more than 0.55 s earlier, or less than half a step. Scenes that are not
    usable take no part, as if the split did not have them.

    Args:
      logs: Log of each scene.
      times_us: Its clock.
      usable: Whether it has a drive to compare.

    Source: NAVSIM v2.2 `infer_start_adjacent_mapping`, `SceneAggregator`.
    """
    order = sorted((i for i in range(len(logs)) if usable[i]), key=lambda i: (logs[i], times_us[i]))
    pairs = {}
    for earlier, later in itertools.pairwise(order):
        gap_us = times_us[later] - times_us[earlier]
        steps = round(gap_us / _STEP_US)
        if logs[earlier] == logs[later] and gap_us <= MOST_GAP_US and steps >= 1:
            pairs[later] = earlier, steps
    return pairs


def spread_scenes(count: int, limit: int, pairs: Pairs) -> list[int]:
    """Evenly spaced scenes of a split, in its order; consecutive frames come in pairs.

    A series of frames falls into pairs from its first one on, its last may stay alone. Pairs and single scenes are
    taken alike, so that those with a neighbour are as frequent as in the split. Without pairs, every scene is single.

    Args:
      count: Scenes of the split.
      limit: How many are taken at most, at least 1.
      pairs: See `previous_frames`; of all scenes of the split.
    """
    following = {before: number for number, (before, _) in pairs.items()}
    groups: list[list[int]] = []
    for first in range(count):
        if first not in pairs:
            series = [first]
            while series[-1] in following:
                series.append(following[series[-1]])
            groups += [series[start : start + 2] for start in range(0, len(series), 2)]
    groups.sort()
    sizes = np.array([len(group) for group in groups])
    for wanted in range(min(limit, len(groups)), 0, -1):
        places = np.unique(np.linspace(0, len(groups) - 1, wanted).round().astype(int))
        if sizes[places].sum() <= limit:
            return sorted(number for place in places for number in groups[place])
    return groups[0][-1:]  # There is only room for half a pair.


def compared_columns(states: Float[np.ndarray, "41 11"]) -> Float[np.ndarray, "41 3"]:
    """What has to be kept of simulated states until the next frame is there."""
    return np.ascontiguousarray(states[:, _COMPARED])


def compare_frames(
    pairs: Pairs,
    drives: Sequence[Float[np.ndarray, "41 3"] | None],
    compare: Callable[[Float[np.ndarray, "B 41 11"], Float[np.ndarray, "B 41 11"], int], Float[np.ndarray, "B"]],
) -> dict[int, float]:
    """Two-frame extended comfort of the scenes that have one before.

    Args:
      pairs: See `previous_frames`.
      drives: `compared_columns` of each scene.
      compare: Compares drives with those some steps before, as `ExtendedScorer.compare` does.
    """

    def states_of(numbers: Sequence[int]) -> np.ndarray:
        states = np.zeros((len(numbers), NUM_STATES, STATE_SIZE))
        states[..., _COMPARED] = np.stack([drives[number] for number in numbers])
        return states

    found: dict[int, float] = {}
    for steps in sorted({steps for _, steps in pairs.values()}):
        later = [number for number, (_, before) in pairs.items() if before == steps]
        for start in range(0, len(later), _AT_ONCE):
            chosen = later[start : start + _AT_ONCE]
            values = compare(states_of(chosen), states_of([pairs[number][0] for number in chosen]), steps)
            found |= dict(zip(chosen, map(float, values), strict=True))
    return found
