"""The chat template: what is supervised, where images stand, where samples are cut."""

import pytest

from recogdrive.data.vlm.chat import DEFAULT_SYSTEM, IGNORED, num_supervised, tokenise, tokenise_prompt
from recogdrive.data.vlm.conversations import Cause, Conversation, ConversationError, Turn
from recogdrive.data.vlm.pictures import FilePicture


def _conversation(*texts, system="", pictures=0):
    roles = ["human", "gpt"] * len(texts)
    turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]
    return Conversation("id", (Turn("system", system), *turns), (FilePicture("a"),) * pictures, "f:1")


def _supervised(tokenizer, ids, labels):
    assert ((labels == IGNORED) | (labels == ids)).all()
    return tokenizer.text_of(labels[labels != IGNORED])


def test_turns_are_written_in_the_template(tokenizer):
    ids, _ = tokenise(_conversation("q", "a", system="s"), tokenizer, (), 2, 999)
    assert tokenizer.text_of(ids) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )


def test_answers_and_what_ends_them_are_supervised(tokenizer):
    ids, labels = tokenise(_conversation("q", "one", "r", "two\n"), tokenizer, (), 2, 999)
    assert _supervised(tokenizer, ids, labels) == "one<|im_end|>two\n<|im_end|>"


def test_without_a_system_turn_the_default_one_comes_first_and_an_empty_one_stays_empty(tokenizer):
    conversation = Conversation("id", (Turn("human", "q"), Turn("gpt", "a")), (), "f:1")
    ids, _ = tokenise(conversation, tokenizer, (), 2, 999)
    assert tokenizer.text_of(ids).startswith(f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n")
    ids, _ = tokenise(_conversation("q", "a"), tokenizer, (), 2, 999)
    assert tokenizer.text_of(ids).startswith("<|im_start|>system\n<|im_end|>\n")


def test_images_stand_for_their_placeholders_in_human_turns_only(tokenizer):
    conversation = _conversation("x<image>y<image>", "<image>", "<image>", "b", system="<image>", pictures=3)
    ids, _ = tokenise(conversation, tokenizer, (1, 2, 0), 2, 999)
    text, context = tokenizer.text_of(ids), "<IMG_CONTEXT>"
    assert f"user\nx<img>{context * 2}</img>y<img>{context * 4}</img><|im_end|>" in text
    assert "user\n<img></img><|im_end|>" in text
    assert "system\n<image><|im_end|>" in text and "assistant\n<image><|im_end|>" in text


def test_long_conversations_are_cut_at_the_end(tokenizer):
    whole, labels = tokenise(_conversation("q", "answer"), tokenizer, (), 2, 999)
    cut, cut_labels = tokenise(_conversation("q", "answer"), tokenizer, (), 2, len(whole) - 4)
    assert cut.tolist() == whole[:-4].tolist()
    assert cut_labels.tolist() == labels[:-4].tolist()


def test_an_answer_may_be_cut_off_whole(tokenizer):
    _, labels = tokenise(_conversation("question", "a"), tokenizer, (), 2, 10)
    assert len(labels) == 10
    assert num_supervised(labels) == 0


def test_images_may_not_be_cut_off_not_even_their_last_token(tokenizer):
    conversation = _conversation("<image>", "a", pictures=1)
    ids, _ = tokenise(conversation, tokenizer, (3,), 2, 999)
    end = ids.tolist().index(tokenizer.id_of("</img>"))
    assert len(tokenise(conversation, tokenizer, (3,), 2, end + 1)[0]) == end + 1
    with pytest.raises(
        ConversationError, match=f"f:1: images reach to token {end + 1} .*max_seq_length={end}"
    ) as error:
        tokenise(conversation, tokenizer, (3,), 2, end)
    assert error.value.cause is Cause.TOO_LONG


@pytest.mark.parametrize("texts", [("<IMG_CONTEXT>", "a"), ("q", "<IMG_CONTEXT>")])
def test_texts_that_spell_image_tokens_are_refused(tokenizer, texts):
    with pytest.raises(ConversationError, match="holds <IMG_CONTEXT>") as error:
        tokenise(_conversation(*texts), tokenizer, (), 2, 999)
    assert error.value.cause is Cause.BAD_RECORD


def test_texts_that_spell_an_end_of_image_do_not_count_as_one(tokenizer):
    conversation = _conversation("<image>", "a</img>", pictures=1)
    ids, _ = tokenise(conversation, tokenizer, (1,), 2, 999)
    tokenise(conversation, tokenizer, (1,), 2, len(ids) - 3)


@pytest.mark.parametrize("pictures, tiles", [(0, ()), (1, ()), (1, (1, 1)), (2, (1, 1))])
def test_placeholders_images_and_counts_must_be_equally_many(tokenizer, pictures, tiles):
    with pytest.raises(ConversationError, match="equally many"):
        tokenise(_conversation("<image>", "a", pictures=pictures), tokenizer, tiles, 2, 999)


def test_a_prompt_ends_where_the_answer_is_to_begin(tokenizer):
    ids = tokenise_prompt((Turn("system", "s"), Turn("human", "<image>q")), tokenizer, (1,), 2)
    assert tokenizer.text_of(ids).endswith("<IMG_CONTEXT></img>q<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_without_its_placeholder_is_refused(tokenizer):
    with pytest.raises(ValueError, match="0 <image> in human turns for 1 images"):
        tokenise_prompt((Turn("human", "q"),), tokenizer, (1,), 2)
