"""Tests of pdm/rewards/samples.py."""

import logging
import pickle

import numpy as np
import pytest

from recogdrive.pdm.cache import CacheError
from recogdrive.pdm.rewards.reward import KNOWN
from recogdrive.pdm.rewards.samples import Records, RewardedSamples
from recogdrive.pdm.rewards.scene_layout import PdmLayout

LAYOUT = PdmLayout()


class Numbered:
    """Samples that are their numbers."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"index": np.int32(index)}


class Counting(Records):
    """Counts what is read; the last record is on a broken disk."""

    read = 0

    def __call__(self, index):
        self.read += 1
        if index == 3:
            raise CacheError("shard 0 is damaged")
        return super().__call__(index)


@pytest.fixture
def found(records, split_of):
    return Counting(*split_of([records[0], "missing", records[2], records[1]]))


@pytest.fixture
def sizes(records):
    return {LAYOUT.prefix: LAYOUT.measure(records[2])}


@pytest.fixture
def samples(found, sizes):
    return RewardedSamples(Numbered(), found, [LAYOUT], sizes)


def test_a_sample_gets_the_entries_of_its_record(samples, records, sizes):
    sample = samples[2]
    assert len(samples) == 4 and sample["index"] == 2 and sample[KNOWN]
    expected = LAYOUT.row(records[2], sizes[LAYOUT.prefix])
    assert sample.keys() == {"index", KNOWN, *expected}
    for name, values in expected.items():
        np.testing.assert_array_equal(sample[name], values)


@pytest.mark.parametrize(("index", "reason"), [(1, "scene missing has no record"), (3, "shard 0 is damaged")])
def test_a_sample_without_usable_record_is_blank_and_named_in_the_log(samples, sizes, caplog, index, reason):
    with caplog.at_level(logging.WARNING, "absl"):
        sample = samples[index]
    assert not sample[KNOWN] and reason in caplog.text
    for name, values in LAYOUT.blank(sizes[LAYOUT.prefix]).items():
        np.testing.assert_array_equal(sample[name], values)


def test_rows_are_made_once(samples, found):
    for index in (0, 1, 0, 1):
        samples[index]
    assert found.read == 2


def test_rows_beyond_the_memory_they_may_take_are_made_anew(found, sizes):
    samples = RewardedSamples(Numbered(), found, [LAYOUT], sizes, keep_gib=0.0)
    first, again = samples[0], samples[0]
    assert found.read == 2
    np.testing.assert_array_equal(first["pdm/ego_state"], again["pdm/ego_state"])


def test_worker_processes_start_with_nothing_kept(samples):
    full = samples[0]
    assert len(pickle.dumps(samples)) < sum(values.nbytes for values in full.values())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(samples))[0]["pdm/maps/edges"], full["pdm/maps/edges"])


def test_without_layouts_no_record_is_read(found):
    sample = RewardedSamples(Numbered(), found, [], {})[1]
    assert sample[KNOWN] and found.read == 0


def test_a_layout_without_sizes_is_refused(found):
    with pytest.raises(ValueError, match="no sizes for pdm/"):
        RewardedSamples(Numbered(), found, [LAYOUT], {})


def test_records_are_found_by_token_where_the_source_can(records, split_of):
    split, source = split_of(records)
    source.by_token = lambda token: f"record of {token}"
    assert Records(split, source)(1) == "record of car"
    assert Records(*split_of(records))(1) is records[1]
