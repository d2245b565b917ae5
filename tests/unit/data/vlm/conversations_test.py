"""Records of conversations: what is understood, and under which cause the rest is counted."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recogdrive.data.vlm.conversations import Cause, Conversation, ConversationError, Turn, parse_conversation

HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def _parse(record, **kwargs):
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    return parse_conversation(line, origin="x.jsonl:7", **kwargs)


def _cause(record):
    with pytest.raises(ConversationError, match=r"^x\.jsonl:7: ") as caught:
        _parse(record)
    return caught.value.cause, str(caught.value)


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": ""}, {"image": []}, {"video": ""}, {"video": None}])
def test_a_record_without_an_image_is_text_only(image):
    conversation = _parse({"id": 3, "conversations": [HUMAN, GPT]} | image)
    assert conversation == Conversation("3", (Turn("human", "q"), Turn("gpt", "a")), (), "x.jsonl:7")


def test_a_record_without_an_id_is_called_by_its_place():
    assert _parse({"conversations": [HUMAN, GPT]}).id == "x.jsonl:7"


def test_a_single_image_gets_its_placeholder_in_front_of_the_first_turn():
    conversation = _parse({"image": "a.png", "conversations": [HUMAN, GPT]}, root="/r")
    assert conversation.turns[0].text == "<image>\nq"
    assert [picture.name for picture in conversation.pictures] == ["/r/a.png"]


def test_a_single_image_with_a_system_turn_first_leaves_a_literal_placeholder_there():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "<image> q"}, GPT]
    conversation = _parse({"image": "a.png", "conversations": turns})
    assert [turn.text for turn in conversation.turns] == ["<image>\ns", "<image> q", "a"]


def test_a_placeholder_in_an_answer_stays_text():
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "<image>"}]
    assert len(_parse({"image": ["a.png"], "conversations": turns}).pictures) == 1


@pytest.mark.parametrize(
    "image, texts",
    [
        (["a.png"], ["q"]),
        (["a.png", "b.png"], ["<image>"]),
        (["a.png"], ["<image><image>"]),
        ("a.png", ["<image><image>"]),
        (None, ["<image>"]),
    ],
)
def test_placeholders_in_human_turns_must_be_as_many_as_the_images(image, texts):
    turns = [turn for text in texts for turn in ({"from": "human", "value": text}, GPT)]
    cause, message = _cause({"image": image, "conversations": turns})
    assert cause is Cause.PLACEHOLDER_MISMATCH
    assert "in human turns for" in message


def test_placeholders_may_be_spread_over_human_turns():
    turns = [{"from": "human", "value": "<image>"}, GPT, {"from": "human", "value": "<image>"}, GPT]
    assert len(_parse({"image": ["a.png", "b.png"], "conversations": turns}).pictures) == 2


def test_videos_are_refused_as_not_built():
    cause, message = _cause({"video": "a.mp4", "conversations": [HUMAN, GPT]})
    assert cause is Cause.UNSUPPORTED_VIDEO
    assert "not built" in message


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b'{"a": 1}}', b"\xff\xfe", b"[" * 100_000, b'{"conversations": [', b"nul", b"1" * 5000],
    ids=["empty", "open", "two", "utf8", "deep", "cut", "word", "digits"],
)
def test_a_line_that_is_not_json_is_counted_as_such(line):
    assert _cause(line)[0] is Cause.MALFORMED_JSON


@pytest.mark.parametrize(
    "record, message",
    [
        ([], "expected an object"),
        ({}, "no 'conversations'"),
        ({"conversation": [HUMAN]}, "Did you mean 'conversation'"),
        ({"conversations": []}, "at least one turn"),
        ({"conversations": "q"}, "'q', expected a list"),
        ({"conversations": [["human", "q"]]}, r"conversations\[0\] is"),
        ({"conversations": [{"from": "user", "value": "q"}]}, "from 'user', expected one of system, human, gpt"),
        ({"conversations": [{"from": ["human"], "value": "q"}]}, r"from \['human'\]"),
        ({"conversations": [{"from": "human", "value": None}]}, "value is None, expected a text"),
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, "expected a text"),
        ({"conversations": [GPT, HUMAN]}, "from 'gpt', expected 'human'"),
        ({"conversations": [HUMAN, HUMAN]}, r"conversations\[1\] is from 'human', expected 'gpt'"),
        ({"conversations": [HUMAN, GPT, {"from": "system", "value": "s"}]}, "system turn may only come first"),
        ({"conversations": [{"from": "system", "value": "s"}]}, "no turn of a human"),
        ({"image": 3, "conversations": [HUMAN, GPT]}, "image is 3"),
        ({"image": ["a.png", ""], "conversations": [HUMAN, GPT]}, "expected a path or a list"),
        ({"image": {"a": 1}, "conversations": [HUMAN, GPT]}, "expected a path or a list"),
        ({"image": "a\0.png", "conversations": [HUMAN, GPT]}, "no file name"),
    ],
)
def test_a_record_of_another_form_is_refused_by_what_is_wrong(record, message):
    with pytest.raises(ConversationError, match=message) as caught:
        _parse(record)
    assert caught.value.cause is Cause.BAD_RECORD


def test_long_values_are_quoted_in_part():
    assert len(_cause({"conversations": "q" * 10_000})[1]) < 200


def test_an_error_keeps_its_cause_between_processes():
    error = pickle.loads(pickle.dumps(ConversationError(Cause.TOO_LONG, "a:1", "why")))
    assert (error.cause, error.origin, str(error)) == (Cause.TOO_LONG, "a:1", "a:1: why (too_long)")


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["human", "gpt", "<image>", "\ud800", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "image", "video", "conversations", "id"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40) | _VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_conversation_or_a_counted_cause(line):
    try:
        conversation = _parse(line)
    except ConversationError as error:
        assert error.cause in Cause
    else:
        assert conversation.turns


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_record_is_a_conversation_or_a_counted_cause(data):
    line = bytearray(json.dumps({"id": "1", "image": ["a.png"], "conversations": [HUMAN, GPT]}).encode())
    at = data.draw(st.integers(0, len(line) - 1))
    line[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=3))
    try:
        assert _parse(bytes(line)).turns
    except ConversationError as error:
        assert error.cause in Cause
