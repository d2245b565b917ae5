"""Parts of a source of conversations."""

import numpy as np
import pytest

from recogdrive.data.vlm.conversations import Conversation, Turn
from recogdrive.data.vlm.held_out import ConversationSubset, FirstConversations


class Numbered:
    """Conversations that are called by their record's number."""

    name = "numbered"
    fingerprint = "n"

    def __init__(self, numbers):
        self.record_numbers = np.asarray(numbers)

    def __len__(self):
        return len(self.record_numbers)

    def __getitem__(self, index):
        return Conversation(str(self.record_numbers[index]), (Turn("human", "q"),), (), "x")


def _ids(source):
    return [int(source[i].id) for i in range(len(source))]


def test_the_parts_hold_every_record_once_between_them():
    source = Numbered(range(20))
    training, held_out = (ConversationSubset(source, part, held_out=6) for part in ("training", "held_out"))
    assert (len(training), len(held_out)) == (14, 6)
    assert sorted(_ids(training) + _ids(held_out)) == list(range(20))


def test_repetitions_stay_together_and_are_held_out_once():
    source = Numbered([*range(10), *range(10)])
    training, held_out = (ConversationSubset(source, part, held_out=3) for part in ("training", "held_out"))
    assert (len(training), len(held_out)) == (14, 3)
    assert not set(_ids(training)) & set(_ids(held_out))
    assert training.record_numbers.tolist() == _ids(training)


def test_a_share_is_rounded_up():
    assert len(ConversationSubset(Numbered(range(10)), "held_out", held_out=0.01)) == 1
    assert len(ConversationSubset(Numbered(range(10)), "held_out", held_out=0.25)) == 3
    assert len(ConversationSubset(Numbered(range(30)), "held_out", held_out=0.1)) == 3


def test_the_split_is_a_function_of_the_seed():
    def part(seed):
        return _ids(ConversationSubset(Numbered(range(50)), "held_out", held_out=10, seed=seed))

    assert part(1) == part(1) != part(2)


def test_what_is_measured_of_one_part_is_not_taken_for_the_other():
    source = Numbered(range(5))
    assert len({ConversationSubset(source, p, held_out=2).fingerprint for p in ("training", "held_out")}) == 2
    assert not hasattr(ConversationSubset(range_source(5), "training", held_out=2), "fingerprint")


def range_source(count):
    """A source that says nothing about itself."""
    source = Numbered(range(count))

    class Plain:
        name = "plain"

        def __len__(self):
            return count

        def __getitem__(self, index):
            return source[index]

    return Plain()


@pytest.mark.parametrize("held_out", [0, 5, -1, 1.5, 1.0 * 5])
def test_a_split_that_leaves_a_part_empty_is_refused(held_out):
    with pytest.raises(ValueError, match=rf"held_out={held_out} of 5 records.*from 1 to 4"):
        ConversationSubset(Numbered(range(5)), "training", held_out=held_out)


def test_another_part_is_refused():
    with pytest.raises(ValueError, match="'test' must be one of 'training', 'held_out'"):
        ConversationSubset(Numbered(range(5)), "test", held_out=1)


def test_the_first_conversations_are_at_most_all():
    source = Numbered(range(5))
    assert _ids(FirstConversations(source, 2)) == [0, 1]
    assert len(FirstConversations(source, 9)) == 5
    with pytest.raises(IndexError):
        FirstConversations(source, 2)[2]
    with pytest.raises(ValueError, match="count=0"):
        FirstConversations(source, 0)
