"""Meta files and the mixtures they describe."""

import json
import pickle

import pytest

from recogdrive.data.vlm.conversations import ConversationError
from recogdrive.data.vlm.meta import ConversationMixture, read_meta


@pytest.fixture
def mixture(tmp_path, write_lines, write_meta, record):
    """A mixture of data sets of numbered records, given as (number of records, entries)."""

    def make(**data_sets):
        for name, (count, _) in data_sets.items():
            write_lines([record(id=f"{name}{i}") for i in range(count)], f"{name}.jsonl")
        return ConversationMixture(write_meta(**{k: v for k, (_, v) in data_sets.items()}), base_folder=tmp_path)

    return make


def _ids(source):
    return [source[i].id for i in range(len(source))]


def test_data_sets_follow_each_other_in_the_order_of_their_keys(mixture):
    assert _ids(mixture(b=(2, {}), a=(1, {}))) == ["b0", "b1", "a0"]


@pytest.mark.parametrize(
    "count, repeat, expected",
    [
        (5, 0.5, "01"),
        (3, 0.34, "0"),
        (3, 0.999, "01"),
        (2, 1, "01"),
        (2, 1.0, "01"),
        (2, 3, "010101"),
        (2, 2.0, "0101"),
    ],
)
def test_a_share_takes_the_first_lines_and_whole_numbers_repeat_all(mixture, count, repeat, expected):
    source = mixture(a=(count, {"repeat_time": repeat}))
    assert _ids(source) == [f"a{number}" for number in expected]
    assert source.record_numbers.tolist() == [int(number) for number in expected]


def test_length_is_ignored_and_other_keys_reach_the_conversations(mixture):
    source = mixture(a=(2, {"length": 99, "max_dynamic_patch": 4, "data_augment": True}), b=(1, {}))
    assert [(c.max_tiles, c.augment) for c in (source[0], source[2])] == [(4, True), (None, False)]


def test_messages_name_file_and_line(tmp_path, write_lines, write_meta, record):
    write_lines([record(), b"{"])
    with pytest.raises(ConversationError, match=r"a\.jsonl:2: the line is not JSON"):
        ConversationMixture(write_meta(a={"repeat_time": 2}), base_folder=tmp_path)[3]


def test_a_mixture_works_in_another_process(mixture):
    source = mixture(a=(3, {}))
    assert _ids(pickle.loads(pickle.dumps(source))) == _ids(source)


def test_there_are_no_conversations_beyond_the_last(mixture):
    with pytest.raises(IndexError, match="conversation 2 of meta"):
        mixture(a=(2, {}))[2]


def test_the_fingerprint_follows_entries_and_lines(mixture):
    first = mixture(a=(2, {})).fingerprint
    assert first == mixture(a=(2, {})).fingerprint
    assert len({first, mixture(a=(3, {})).fingerprint, mixture(a=(2, {"repeat_time": 2})).fingerprint}) == 3


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"repeat_time": 1.5}, r"repeat_time=1\.5 must be a whole number where it is above 1, e\.g\. 1 or 2"),
        ({"repeat_time": 0}, "repeat_time=0 must be a positive"),
        ({"repeat_time": True}, "repeat_time=True must be a positive"),
        ({"repeat_time": "2"}, "repeat_time='2' must be"),
        ({"repeat_time": float("nan")}, "repeat_time=nan must be"),
        ({"repeat_times": 2}, "'repeat_times' is not known. Did you mean 'repeat_time'"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch=0 must be"),
        ({"data_augment": "yes"}, "data_augment='yes' must be true or false"),
        ({"annotation": "a.json"}, "annotation='a.json' must end in jsonl"),
        ({"annotation": None}, "annotation is None, expected a path"),
        ({"root": 3}, "root is 3, expected a path"),
    ],
)
def test_entries_that_make_no_sense_are_refused_by_data_set_key_and_value(write_meta, entry, message):
    with pytest.raises(ValueError, match=f"data set 'a'.*{message}"):
        read_meta(write_meta(a=entry))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a meta file"),
        ("[]", "expected an object of data sets"),
        ("{}", "expected an object of data sets"),
        ('{"a": 1}', "'a' is 1, expected an object"),
        ('{"a": {}, "a": {}}', "'a' is there twice"),
    ],
)
def test_what_is_no_meta_file_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=rf"meta\.json.*{message}"):
        read_meta(tmp_path / "meta.json")


def test_an_absent_meta_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="absent cannot be read"):
        read_meta(tmp_path / "absent")


def test_a_data_set_without_conversations_is_refused(mixture):
    with pytest.raises(ValueError, match="'a' has no conversations: .* has 1 lines and repeat_time is 0.5"):
        mixture(a=(1, {"repeat_time": 0.5}))


def test_resampling_is_refused_instead_of_being_ignored(write_meta):
    with pytest.raises(ValueError, match="use_data_resampling=True is not built.*repeat_time"):
        ConversationMixture(write_meta(a={}), use_data_resampling=True)


def test_absolute_paths_in_a_meta_file_win_over_the_base_folder(tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps({"a": {"root": "/r", "annotation": "a.jsonl"}}))
    (data_set,) = read_meta(tmp_path / "meta.json", "/base")
    assert (str(data_set.root), str(data_set.annotation)) == ("/r", "/base/a.jsonl")
