"""Conversations -> samples of a vision-language model: token ids, labels, tiles."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Int32, UInt8

from recogdrive.data.vlm.chat import TextTokenizer, num_supervised, tokenise
from recogdrive.data.vlm.conversations import Cause, Conversation, ConversationError, ConversationSource
from recogdrive.data.vlm.pictures import PictureError
from recogdrive.data.vlm.tiling import Tiling

T = TypeVar("T")


@dataclass(frozen=True)
class VlmSample:
    """What a model sees of a conversation.

    Attributes:
      input_ids: Token ids.
      labels: The same where supervised, else -100.
      tiles: RGB, not normalised.
    """

    input_ids: Int32[np.ndarray, "T"]
    labels: Int32[np.ndarray, "T"]
    tiles: UInt8[np.ndarray, "n S S 3"]


@dataclass(frozen=True)
class SampleSize:
    """What a sample takes of a batch, and gives to the loss.

    Attributes:
      tokens: Its length.
      tiles: Of all its images.
      supervised: Tokens with a label.
    """

    tokens: int
    tiles: int
    supervised: int


class VlmSamples:
    """Random-access samples of a source of conversations.

    With k images in a sample each gets at most `max(1, limit // k)` tiles, thumbnails not counted.

    Args:
      conversations: Where they come from.
      tokenizer: Knows the template's special tokens. To be used in worker processes it must pickle.
      tiling: Cuts images; a conversation's own limit of tiles wins over the tiling's.
      tokens_per_tile: Vectors that stand for a tile.
      max_seq_length: Where samples are cut.
      seed: Of the augmentation, which differs from epoch to epoch.

    Attributes:
      fingerprint: Of all that decides the samples' sizes; None where the source or the tokenizer has none.

    Raises:
      ValueError: A number that is not positive.
    """

    def __init__(
        self,
        conversations: ConversationSource,
        tokenizer: TextTokenizer,
        tiling: Tiling,
        *,
        tokens_per_tile: int,
        max_seq_length: int,
        seed: int = 0,
    ) -> None:
        for name, value in (("tokens_per_tile", tokens_per_tile), ("max_seq_length", max_seq_length)):
            if value < 1:
                raise ValueError(f"VlmSamples.{name}={value} must be positive.")
        self.conversations = conversations
        self.tokenizer = tokenizer
        self.tiling = tiling
        self.tokens_per_tile = tokens_per_tile
        self.max_seq_length = max_seq_length
        self._seed = seed

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> VlmSample:
        """The sample as in the first epoch."""
        return self.sample(index)

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of source, tokenizer, tiling, tokens per tile and greatest length."""
        source = getattr(self.conversations, "fingerprint", None)
        tokenizer = getattr(self.tokenizer, "fingerprint", None)
        if not source or not tokenizer:
            return None
        content = [source, tokenizer, asdict(self.tiling), self.tokens_per_tile, self.max_seq_length]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def sample(self, index: int, epoch: int = 0) -> VlmSample:
        """One sample. It may have no supervised token: its answer may have been cut off.

        Args:
          index: Which.
          epoch: Decides the augmentation.

        Raises:
          ConversationError: Its record or an image is unusable, or it is too long.
        """
        conversation = self.conversations[index]
        counts = self._counts(conversation)
        input_ids, labels = self._tokenised(conversation, counts)
        augment = np.random.default_rng((self._seed, epoch, index)) if conversation.augment else None
        tiles = self._tiles(conversation, augment)
        if len(tiles) != sum(counts):
            raise ConversationError(
                Cause.CORRUPT_IMAGE,
                conversation.origin,
                f"images gave {len(tiles)} tiles, their headers announced {sum(counts)}",
            )
        return VlmSample(input_ids, labels, tiles)

    def measure(self, index: int, decode: bool = False) -> SampleSize:
        """Size of a sample, from the text and the headers of the images.

        Args:
          index: Which.
          decode: Whether to decode the images all the same, to know that they can be.

        Raises:
          ConversationError: As for `sample`; damage behind an image's header is found only with `decode`.
        """
        conversation = self.conversations[index]
        counts = self._counts(conversation)
        _, labels = self._tokenised(conversation, counts)
        if decode:
            for picture in conversation.pictures:
                _attempt(picture.open, conversation.origin)
        return SampleSize(tokens=len(labels), tiles=sum(counts), supervised=num_supervised(labels))

    def tiles_of(
        self, conversation: Conversation, augment: np.random.Generator | None = None
    ) -> list[UInt8[np.ndarray, "n S S 3"]]:
        """Tiles of each image of a conversation.

        Args:
          conversation: Not necessarily of this source.
          augment: Draws the augmentation; None leaves images as they are.

        Raises:
          ConversationError: An image is missing or damaged.
        """
        return [
            self.tiling.tiles(_attempt(picture.open, conversation.origin), self._limit(conversation), augment)
            for picture in conversation.pictures
        ]

    def _limit(self, conversation: Conversation) -> int:
        whole = self.tiling.max_tiles if conversation.max_tiles is None else conversation.max_tiles
        return max(1, whole // max(1, len(conversation.pictures)))

    def _counts(self, conversation: Conversation) -> list[int]:
        sizes = [_attempt(picture.size, conversation.origin) for picture in conversation.pictures]
        return [self.tiling.count(*size, max_tiles=self._limit(conversation)) for size in sizes]

    def _tokenised(self, conversation: Conversation, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return tokenise(conversation, self.tokenizer, counts, self.tokens_per_tile, self.max_seq_length)

    def _tiles(self, conversation: Conversation, augment: np.random.Generator | None) -> np.ndarray:
        side = self.tiling.image_size
        cut = self.tiles_of(conversation, augment)
        return np.concatenate(cut) if cut else np.zeros((0, side, side, 3), np.uint8)


def _attempt(read: Callable[[], T], origin: str) -> T:
    """What `read` gives; a picture that fails becomes a fault of the conversation."""
    try:
        return read()
    except PictureError as error:
        cause = Cause.MISSING_IMAGE if error.missing else Cause.CORRUPT_IMAGE
        raise ConversationError(cause, origin, str(error)) from error
