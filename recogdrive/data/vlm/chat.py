"""Conversations -> token ids and labels, in the template `internvl2_5`."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int32

from recogdrive.data.vlm.conversations import IMAGE_PLACEHOLDER, Cause, Conversation, ConversationError, Turn
from recogdrive.data.vlm.tokenizer import IMG_CONTEXT, IMG_END, IMG_START

TEMPLATE = "internvl2_5"
"""Its name in configurations."""
IGNORED = -100
"""Label of a token that is not supervised."""
DEFAULT_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""What the system says in a conversation without a system turn; a wire string of official weights."""
_ROLE_NAMES = {"system": "system", "human": "user", "gpt": "assistant"}
_START, _END = "<|im_start|>", "<|im_end|>"
ANSWER_HEADER = f"{_START}{_ROLE_NAMES['gpt']}\n"
"""What an answer begins with; a prompt ends with it."""


class TextTokenizer(Protocol):
    """What turning conversations into token ids needs of a tokenizer."""

    @property
    def pad_id(self) -> int:
        """Id of the token that fills rows up."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text: special tokens are recognised, nothing is added."""
        ...

    def id_of(self, token: str) -> int:
        """Id of a special token."""
        ...


def tokenise(
    conversation: Conversation,
    tokenizer: TextTokenizer,
    tiles_per_picture: Sequence[int],
    tokens_per_tile: int,
    max_seq_length: int,
) -> tuple[Int32[np.ndarray, "T"], Int32[np.ndarray, "T"]]:
    """Token ids and labels of a conversation.

    Turns are tokenised one by one and put in a row. Supervised are the text of answers and the token that ends them;
    all else is `IGNORED`. Both arrays are cut to `max_seq_length`, which may leave nothing supervised.

    Args:
      conversation: Its human turns hold one placeholder for every image.
      tokenizer: Knows the template's special tokens.
      tiles_per_picture: Number of tiles of each image.
      tokens_per_tile: Vectors that stand for a tile.
      max_seq_length: Greatest number of tokens.

    Raises:
      ConversationError: Tokens of images would be cut off; a text holds tokens that stand for images.

    Source: upstream `preprocess_internvl2_5` of InternVL.
    """
    _require_a_count_each(conversation, tiles_per_picture)
    ids: list[int] = []
    labels: list[int] = []
    header = len(tokenizer.encode(ANSWER_HEADER))
    last_image_end = 0
    for turn, of_turn in _turn_ids(conversation.turns, tokenizer, tiles_per_picture, tokens_per_tile):
        if turn.role == "gpt":
            labels += [IGNORED] * header + of_turn[header:-1] + [IGNORED]
        else:
            labels += [IGNORED] * len(of_turn)
            if IMAGE_PLACEHOLDER in turn.text and turn.role == "human":
                end = tokenizer.id_of(IMG_END)
                last_image_end = len(ids) + len(of_turn) - of_turn[::-1].index(end)
        ids += of_turn
    _require_own_image_tokens(conversation, ids, tokenizer, sum(tiles_per_picture) * tokens_per_tile)
    if last_image_end > max_seq_length:
        raise ConversationError(
            Cause.TOO_LONG,
            conversation.origin,
            f"images reach to token {last_image_end} of {len(ids)}, beyond max_seq_length={max_seq_length}; "
            "raise it or lower the limit of tiles",
        )
    return np.asarray(ids[:max_seq_length], np.int32), np.asarray(labels[:max_seq_length], np.int32)


def tokenise_prompt(
    turns: Sequence[Turn], tokenizer: TextTokenizer, tiles_per_picture: Sequence[int], tokens_per_tile: int
) -> Int32[np.ndarray, "T"]:
    """Token ids of turns up to where the model is to answer: the answer's header comes last.

    Args:
      turns: Up to a human turn.
      tokenizer: Knows the template's special tokens.
      tiles_per_picture: Number of tiles of each image, in the order of the placeholders.
      tokens_per_tile: Vectors that stand for a tile.

    Raises:
      ValueError: The placeholders are not as many as the images.
    """
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    if placeholders != len(tiles_per_picture):
        raise ValueError(
            f"the prompt has {placeholders} {IMAGE_PLACEHOLDER} in human turns for {len(tiles_per_picture)} images."
        )
    ids = [i for _, of_turn in _turn_ids(turns, tokenizer, tiles_per_picture, tokens_per_tile) for i in of_turn]
    return np.asarray(ids + tokenizer.encode(ANSWER_HEADER), np.int32)


def num_supervised(labels: Int32[np.ndarray, "T"]) -> int:
    """Labels that a loss can be computed for: the first token has nothing before it."""
    return int(np.count_nonzero(labels[1:] != IGNORED))


def _turn_ids(
    turns: Sequence[Turn], tokenizer: TextTokenizer, tiles_per_picture: Sequence[int], tokens_per_tile: int
) -> list[tuple[Turn, list[int]]]:
    """Every turn with its ids; a system turn in front if there is none. Images stand in human turns only."""
    if not turns or turns[0].role != "system":
        turns = (Turn("system", DEFAULT_SYSTEM), *turns)
    image = 0
    made = []
    for turn in turns:
        text = f"{_START}{_ROLE_NAMES[turn.role]}\n{turn.text}{_END}\n"
        pieces = text.split(IMAGE_PLACEHOLDER) if turn.role == "human" else [text]
        ids = tokenizer.encode(pieces[0])
        # Special tokens part a text before its words are tokenised, so the ids are those of the text in one piece.
        for piece in pieces[1:]:
            context = [tokenizer.id_of(IMG_CONTEXT)] * (tiles_per_picture[image] * tokens_per_tile)
            ids = [*ids, tokenizer.id_of(IMG_START), *context, tokenizer.id_of(IMG_END), *tokenizer.encode(piece)]
            image += 1
        made.append((turn, ids))
    return made


def _require_a_count_each(conversation: Conversation, tiles_per_picture: Sequence[int]) -> None:
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in conversation.turns if turn.role == "human")
    if not placeholders == len(conversation.pictures) == len(tiles_per_picture):
        raise ConversationError(
            Cause.PLACEHOLDER_MISMATCH,
            conversation.origin,
            f"{placeholders} {IMAGE_PLACEHOLDER} in human turns, {len(conversation.pictures)} images and "
            f"{len(tiles_per_picture)} counts of tiles must be equally many",
        )


def _require_own_image_tokens(
    conversation: Conversation, ids: Sequence[int], tokenizer: TextTokenizer, expected: int
) -> None:
    """Refuses texts that spell image tokens: their vectors would go astray."""
    found = ids.count(tokenizer.id_of(IMG_CONTEXT))
    if found != expected:
        raise ConversationError(
            Cause.BAD_RECORD,
            conversation.origin,
            f"a text holds {IMG_CONTEXT} ({found} such tokens where the images have {expected}); remove it",
        )
