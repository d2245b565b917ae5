"""Answers to misspelt names."""

import pytest

from recogdrive.suggestions import did_you_mean


@pytest.mark.parametrize("name, answer", [("BACH_SIZE", "BATCH_SIZE"), ("batch_size", "BATCH_SIZE"), ("sed", "SEED")])
def test_the_nearest_name_is_suggested_whatever_its_case(name, answer):
    assert did_you_mean(name, ["SEED", "BATCH_SIZE"]) == f" Did you mean {answer!r}?"


def test_several_near_names_are_suggested_nearest_first():
    assert did_you_mean("2b_ill", ["8b_il", "2b_il", "quickstart"]) == " Did you mean '2b_il' or '8b_il'?"


def test_where_none_is_near_all_are_listed_up_to_a_dozen():
    assert did_you_mean("zzz", ["mini", "test"]) == " There is: mini, test."
    many = [f"a{i}" for i in range(15)]
    assert did_you_mean("zzz", many) == f" There is: {', '.join(many[:12])} and 3 more."


def test_where_there_is_nothing_that_is_said():
    assert did_you_mean("zzz", []) == " There is none."
