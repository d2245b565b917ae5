"""Splits: opened late, described in any case, refused when empty."""

import pytest

from recogdrive.data.splits import PlanningSplits


class Source:
    def __init__(self, size, name="source", split="mini", **counts):
        self.size, self.name, self.split, self.report = size, name, split, {"scenes": size, **counts}
        self.tokens = tuple(map(str, range(size)))

    def __len__(self):
        return self.size


def missing():
    raise FileNotFoundError("no folder /data")


def test_nothing_is_opened_before_it_is_needed():
    splits = PlanningSplits(train=missing, evaluate=[("val", lambda: Source(3))])
    assert [(name, len(s)) for name, s in splits.open_evaluate().items()] == [("val", 3)]
    with pytest.raises(FileNotFoundError):
        splits.open_train()


def test_a_split_is_opened_once_however_often_it_is_asked_for():
    opened = []
    splits = PlanningSplits(train=lambda: opened.append(1) or Source(3))
    assert splits.open_train() is splits.open_train()
    splits.describe()
    assert opened == [1]


def test_evaluated_splits_keep_their_order():
    splits = PlanningSplits(evaluate=[("z", lambda: Source(1)), ("a", lambda: Source(2))])
    assert list(splits.open_evaluate()) == ["z", "a"]


def test_a_description_gives_counts_where_there_are_scenes_and_the_reason_where_there_are_none():
    splits = PlanningSplits(train=missing, evaluate=[("val", lambda: Source(1200, "mini", logs=2, dropped_no_route=3))])
    assert splits.describe() == {
        "train": "not available: no folder /data",
        "evaluate val": "1,200 scenes of mini (2 logs, 3 dropped no route)",
    }


def test_an_empty_split_is_refused_by_name():
    splits = PlanningSplits(train=lambda: Source(0, "mini"), evaluate=[("val", lambda: Source(0, "town"))])
    with pytest.raises(ValueError, match=r"Split 'train' \(mini\) holds no scenes"):
        splits.open_train()
    with pytest.raises(ValueError, match=r"Split 'val' \(town\) holds no scenes"):
        splits.open_evaluate()


def test_an_experiment_without_training_split_says_what_to_bind():
    with pytest.raises(ValueError, match=r"no training split; bind PlanningSplits\.train"):
        PlanningSplits(evaluate=[("val", lambda: Source(1))]).open_train()


def test_splits_without_any_source_are_refused():
    with pytest.raises(ValueError, match="neither train nor evaluate"):
        PlanningSplits()


def test_two_splits_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"names a split twice: \['val', 'val'\]"):
        PlanningSplits(evaluate=[("val", missing), ("val", missing)])


def test_what_is_looked_at_during_training_is_the_evaluated_splits_unless_others_are_given():
    evaluate = [("val", lambda: Source(3))]
    assert {name: len(s) for name, s in PlanningSplits(evaluate=evaluate).open_validate().items()} == {"val": 3}
    splits = PlanningSplits(evaluate=evaluate, validate=[("b", lambda: Source(1)), ("a", lambda: Source(2))])
    assert [(name, len(s)) for name, s in splits.open_validate().items()] == [("b", 1), ("a", 2)]
    assert list(splits.open_evaluate()) == ["val"]


def test_splits_to_validate_on_are_described_and_opened_with_all_others():
    splits = PlanningSplits(lambda: Source(9), [("val", lambda: Source(3))], [("held_out", lambda: Source(2, "end"))])
    assert list(splits.open_all()) == list(splits.describe()) == ["train", "validate held_out", "evaluate val"]
    assert splits.describe()["validate held_out"] == "2 scenes of end"


@pytest.mark.parametrize("split", ["test", "private_test_e2e"])
@pytest.mark.parametrize("argument", ["validate", "evaluate"])
def test_navsims_test_split_is_refused_as_what_is_looked_at_during_training(split, argument):
    splits = PlanningSplits(lambda: Source(9), **{argument: [("navtest", lambda: Source(3, split=split))]})
    with pytest.raises(ValueError, match=rf"'navtest' .* NAVSIM's split '{split}'.* Bind PlanningSplits\.validate to"):
        splits.open_validate()


def test_a_test_split_to_validate_on_shows_in_the_description():
    splits = PlanningSplits(lambda: Source(9), validate=[("navtest", lambda: Source(3, split="test"))])
    assert splits.describe()["validate navtest"].startswith("not available: Split 'navtest' (source) is NAVSIM's split")


def test_a_split_to_validate_on_is_refused_where_it_is_empty_or_named_twice():
    with pytest.raises(ValueError, match="Split 'val' .* holds no scenes"):
        PlanningSplits(missing, validate=[("val", lambda: Source(0))]).open_validate()
    with pytest.raises(ValueError, match=r"PlanningSplits\.validate names a split twice"):
        PlanningSplits(missing, validate=[("val", missing), ("val", missing)])
