"""Conversations about images: their records, and what can be wrong with one."""

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recogdrive.data.vlm.pictures import Picture, file_picture
from recogdrive.suggestions import did_you_mean

IMAGE_PLACEHOLDER = "<image>"
"""Where a text has an image."""
ROLES = ("system", "human", "gpt")
_SHOWN = 60
"""Characters of a wrong value that a message quotes."""


class Cause(enum.StrEnum):
    """Why a sample cannot be used; samples are counted by it."""

    MALFORMED_JSON = "malformed_json"
    BAD_RECORD = "bad_record"
    UNSUPPORTED_VIDEO = "unsupported_video"
    PLACEHOLDER_MISMATCH = "placeholder_mismatch"
    MISSING_IMAGE = "missing_image"
    CORRUPT_IMAGE = "corrupt_image"
    TOO_LONG = "too_long"
    NO_SUPERVISED_TOKENS = "no_supervised_tokens"


class ConversationError(ValueError):
    """A sample that cannot be used; the message names where it comes from and what is wrong.

    Attributes:
      cause: What it is counted under.
      origin: "file:line" or a scene.
      reason: The message without the origin.
    """

    def __init__(self, cause: Cause, origin: str, reason: str) -> None:
        super().__init__(cause, origin, reason)
        self.cause = cause
        self.origin = origin
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason} ({self.cause})"


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
      role: "system", "human" or "gpt".
      text: The words; in human turns `<image>` stands for the next image.
    """

    role: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns about images.

    Attributes:
      id: Of the record or scene.
      turns: An optional system turn, then human and gpt in turn.
      pictures: In the order of their placeholders.
      origin: "file:line" or a scene, for messages.
      max_tiles: Limit of tiles for all images together; None leaves it to the tiling.
      augment: Whether tiles go through JPEG in training.
    """

    id: str
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...]
    origin: str
    max_tiles: int | None = None
    augment: bool = False


class ConversationSource(Protocol):
    """Random access to conversations; `source[i]` depends on nothing but the source and i.

    A source may also have `fingerprint`, a string that changes with its content (without it nothing that was measured
    is kept for the next run), and `record_numbers`, an int64 array that says which record each conversation is (equal
    numbers are the same record, repeated; without it all differ).
    """

    name: str

    def __len__(self) -> int:
        """Number of conversations."""
        ...

    def __getitem__(self, index: int) -> Conversation:
        """One conversation; raises ConversationError where its record is unusable."""
        ...


def check_turns(turns: Sequence[Turn], num_pictures: int, origin: str) -> None:
    """Refuses turns out of order, or with another number of placeholders than of images.

    Raises:
      ConversationError: Names what is wrong.
    """
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken:
        raise ConversationError(Cause.BAD_RECORD, origin, "no turn of a human")
    for number, turn in enumerate(spoken):
        expected = "gpt" if number % 2 else "human"
        if turn.role != expected:
            where = number + len(turns) - len(spoken)
            raise ConversationError(
                Cause.BAD_RECORD,
                origin,
                f"conversations[{where}] is from {turn.role!r}, expected {expected!r}: human and gpt must alternate, "
                "and a system turn may only come first",
            )
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in spoken if turn.role == "human")
    if placeholders != num_pictures:
        raise ConversationError(
            Cause.PLACEHOLDER_MISMATCH,
            origin,
            f"{placeholders} {IMAGE_PLACEHOLDER} in human turns for {num_pictures} images; the numbers must be equal",
        )


def parse_conversation(
    line: bytes | str,
    *,
    origin: str,
    root: str | Path = "",
    max_tiles: int | None = None,
    augment: bool = False,
) -> Conversation:
    """One line of a JSONL file as a conversation.

    An image given as a string gets its placeholder in front of the first turn if that has none, whichever turn it is;
    images given as a list must have all their placeholders in human turns. An empty image is none. Other keys of the
    record are ignored.

    Args:
      line: JSON, UTF-8.
      origin: Its place, "file:line".
      root: Folder of relative image paths.
      max_tiles: Of `Conversation`.
      augment: Likewise.

    Raises:
      ConversationError: The line or its record is unusable; names what is wrong.

    Source: upstream `LazySupervisedDataset` of InternVL; strict where that draws another record.
    """
    record = _json_object(line, origin)
    turns = _turns(record, origin)
    if record.get("video"):
        raise ConversationError(
            Cause.UNSUPPORTED_VIDEO, origin, "the record has a video; sampling of frames is not built, list images"
        )
    images = record.get("image")
    if images is None or images == "" or images == []:
        paths: list[str] = []
    elif isinstance(images, str):
        paths = [images]
        if IMAGE_PLACEHOLDER not in turns[0].text:
            turns[0] = Turn(turns[0].role, f"{IMAGE_PLACEHOLDER}\n{turns[0].text}")
    elif isinstance(images, list) and all(isinstance(path, str) and path for path in images):
        paths = images
    else:
        raise ConversationError(
            Cause.BAD_RECORD, origin, f"image is {_short(images)}, expected a path or a list of them"
        )
    if any(_unusable(path) or "\0" in path for path in paths):
        raise ConversationError(Cause.BAD_RECORD, origin, f"image is {_short(images)}, which is no file name")
    check_turns(turns, len(paths), origin)
    name = record.get("id")
    return Conversation(
        id=origin if name is None else str(name),
        turns=tuple(turns),
        pictures=tuple(file_picture(root, path) for path in paths),
        origin=origin,
        max_tiles=max_tiles,
        augment=augment,
    )


def _json_object(line: bytes | str, origin: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8") if isinstance(line, bytes) else line)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConversationError(Cause.MALFORMED_JSON, origin, f"the line is not JSON: {what}") from None
    if not isinstance(record, dict):
        raise ConversationError(Cause.BAD_RECORD, origin, f"the record is {_short(record)}, expected an object")
    return record


def _turns(record: dict[str, Any], origin: str) -> list[Turn]:
    if "conversations" not in record:
        hint = did_you_mean("conversations", map(str, record))
        raise ConversationError(Cause.BAD_RECORD, origin, f"the record has no 'conversations'.{hint}")
    given = record["conversations"]
    if not isinstance(given, list) or not given:
        raise ConversationError(
            Cause.BAD_RECORD, origin, f"conversations is {_short(given)}, expected a list of at least one turn"
        )
    turns = []
    for number, turn in enumerate(given):
        place = f"conversations[{number}]"
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise ConversationError(
                Cause.BAD_RECORD, origin, f"{place} is {_short(turn)}, expected an object with 'from' and 'value'"
            )
        role, text = turn["from"], turn["value"]
        if role not in ROLES:
            raise ConversationError(
                Cause.BAD_RECORD, origin, f"{place} is from {_short(role)}, expected one of {', '.join(ROLES)}"
            )
        if not isinstance(text, str) or _unusable(text):
            raise ConversationError(Cause.BAD_RECORD, origin, f"{place}.value is {_short(text)}, expected a text")
        turns.append(Turn(role, text))
    return turns


def _unusable(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which JSON can write and UTF-8 cannot."""
    return any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else False


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
