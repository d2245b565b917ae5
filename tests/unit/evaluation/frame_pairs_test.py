"""Which frames follow each other, on hand-worked clocks."""

import numpy as np
import pytest

from recogdrive.evaluation.frame_pairs import compare_frames, compared_columns, previous_frames, spread_scenes
from recogdrive.pdm.state import EgoState


@pytest.mark.parametrize(
    "gap_us, steps",
    [
        (500_000, 5),
        (499_654, 5),
        (550_000, 6),
        (550_001, None),
        (1_000_000, None),
        (100_000, 1),
        (49_000, None),
        (0, None),
    ],
)
def test_a_frame_up_to_550_ms_before_makes_a_pair(gap_us, steps):
    pairs = previous_frames(["a", "a"], [7, 7 + gap_us], [True, True])
    assert pairs == ({} if steps is None else {1: (0, steps)})


def test_frames_are_paired_by_clock_whatever_their_order():
    assert previous_frames(["a"] * 3, [1_000_000, 0, 500_000], [True] * 3) == {2: (1, 5), 0: (2, 5)}


def test_logs_are_kept_apart():
    assert previous_frames(["a", "b", "a"], [0, 500_000, 500_000], [True] * 3) == {2: (0, 5)}


def test_a_frame_without_a_drive_leaves_the_next_one_without_a_pair():
    assert previous_frames(["a"] * 3, [0, 500_000, 1_000_000], [True, False, True]) == {}


def test_drives_come_with_what_is_compared_and_their_own_earlier_frame():
    states = np.arange(4 * 41 * 11, dtype=float).reshape(4, 41, 11)
    asked = []

    def compare(current, previous, steps):
        asked.append(steps)
        for drive, number in zip(np.concatenate([current, previous]), {5: (1, 3, 0, 2), 4: (2, 1)}[steps], strict=True):
            for column in (EgoState.HEADING, EgoState.ACCELERATION_X, EgoState.ACCELERATION_Y):
                np.testing.assert_array_equal(drive[:, column], states[number][:, column])
        return current[:, 0, EgoState.HEADING]

    drives = [compared_columns(state) for state in states]
    found = compare_frames({1: (0, 5), 2: (1, 4), 3: (2, 5)}, drives, compare)
    assert asked == [4, 5]
    assert found == {number: states[number, 0, EgoState.HEADING] for number in (1, 2, 3)}


def test_without_pairs_nothing_is_compared():
    assert compare_frames({}, [], None) == {}


@pytest.mark.parametrize("count, limit", [(100, 5), (7, 7), (3, 9), (1000, 256), (2, 1)])
def test_without_pairs_evenly_spaced_scenes_are_taken(count, limit):
    expected = np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))
    assert spread_scenes(count, limit, {}) == expected.tolist()


@pytest.mark.parametrize("limit, expected", [(4, [0, 1, 8, 9]), (7, [0, 1, 4, 5, 8, 9]), (1, [1]), (10, range(10))])
def test_consecutive_frames_are_taken_together(limit, expected):
    assert spread_scenes(10, limit, {2 * k + 1: (2 * k, 5) for k in range(5)}) == list(expected)


def test_a_series_of_frames_falls_into_pairs_and_single_scenes_are_taken_alike():
    # Frames 0 to 4 follow each other: (0, 1), (2, 3), 4; then 5 to 8 alone.
    pairs = {k: (k - 1, 5) for k in range(1, 5)}
    assert spread_scenes(9, 9, pairs) == list(range(9))
    assert spread_scenes(9, 5, pairs) == [0, 1, 4, 6, 8]
    assert spread_scenes(9, 3, pairs) == [0, 1, 8]


def test_a_pair_in_another_order_than_the_clocks_stays_together():
    assert spread_scenes(4, 2, {0: (3, 5), 1: (2, 5)}) == [1, 2]
