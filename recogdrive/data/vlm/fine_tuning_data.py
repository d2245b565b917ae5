"""The data of a fine-tuning run: conversations, how they become tokens and tiles, how they lie in rows."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import gin
from absl import logging

from recogdrive.data.vlm.conversations import ConversationSource
from recogdrive.data.vlm.layouts import RowLayout
from recogdrive.data.vlm.rows import require_reduction
from recogdrive.data.vlm.samples import VlmSamples
from recogdrive.data.vlm.scene_conversations import SceneConversations, training_texts
from recogdrive.data.vlm.stream import VlmBatchStream
from recogdrive.data.vlm.survey import Executor, Survey, require_budget, take_survey
from recogdrive.data.vlm.tiling import Tiling
from recogdrive.data.vlm.tokenizer import VlmTokenizer, train_tokenizer
from recogdrive.data.vlm.weights_folder import find_weights_folder

OpenConversations = Callable[[], ConversationSource]


class TokenizerSource(Protocol):
    """Where a run's tokenizer comes from."""

    def open(self, weights: Path | None) -> VlmTokenizer:
        """The tokenizer; `weights` is what the run starts from, None for random weights."""
        ...


@gin.register
@dataclass(frozen=True)
class FolderTokenizer:
    """The tokenizer of a folder, with ReCogDrive's driving tokens.

    Attributes:
      folder: Of the tokenizer; None takes that of the weights.
    """

    folder: str | None = None

    def open(self, weights: Path | None) -> VlmTokenizer:
        """Reads it.

        Raises:
          OSError: The folder holds none.
          ValueError: It lacks tokens that conversations need, or there is neither a folder nor weights.
        """
        if self.folder is not None:
            return VlmTokenizer.from_folder(self.folder)
        if weights is None:
            raise ValueError("A run from random weights needs a tokenizer: set TOKENIZER to the folder of one.")
        return VlmTokenizer.from_folder(find_weights_folder(weights))


@gin.register
@dataclass(frozen=True)
class TownTokenizer:
    """A small tokenizer made from conversations about scenes, or that of the weights where there are any.

    Attributes:
      conversations: Whose texts it is trained on.
      count: How many of them.
      vocab_size: Most tokens it may have.
    """

    conversations: SceneConversations
    count: int = 400
    vocab_size: int = 1024

    def open(self, weights: Path | None) -> VlmTokenizer:
        """Trains it, always to the same; some seconds."""
        if weights is not None:
            return VlmTokenizer.from_folder(find_weights_folder(weights))
        return train_tokenizer(training_texts(self.conversations, self.count), self.vocab_size)


@gin.register
class FineTuningData:
    """Data of a fine-tuning run.

    Conversations are given as callables (`@train/ConversationSubset`, without parentheses) and opened when they are
    needed, so that an experiment can be described where its data is not.

    Args:
      train: Opens the conversations to train on.
      tokenizer: Where the tokenizer comes from.
      tiling: Cuts images; its tiles must have the side that the model's have.
      layout: Deals samples to rows.
      held_out: Opens the conversations whose loss is watched; None watches none.
      max_seq_length: Where samples are cut.
      loss_reduction: Weight of a label by the number n of them in its sample: "token" 1, "sample" 1/n, "square"
        1/sqrt(n).
      max_skipped: Records that may be unusable, in number or below 1 as a share; 0 refuses any.
      decode_images: Whether all images are decoded before training, to find damage behind their headers.
      survey_executor: Spreads the survey over processes; threads unless given.
      num_threads: Reading threads.
      num_workers: Worker processes that decode images; 0 reads in threads.
      prefetch: Batches made ahead.

    Raises:
      ValueError: A reduction or a budget that does not exist.
    """

    def __init__(
        self,
        train: OpenConversations,
        tokenizer: TokenizerSource,
        tiling: Tiling,
        layout: RowLayout,
        *,
        held_out: OpenConversations | None = None,
        max_seq_length: int = 8192,
        loss_reduction: str = "token",
        max_skipped: int | float = 0,
        decode_images: bool = False,
        survey_executor: Executor | None = None,
        num_threads: int = 2,
        num_workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        require_reduction(loss_reduction)
        require_budget(max_skipped)
        self._train = functools.cache(lambda: train())  # Opening may index gigabytes of lines.
        self._held_out = None if held_out is None else functools.cache(lambda: held_out())
        self.tokenizer, self.tiling, self.layout = tokenizer, tiling, layout
        self.max_seq_length, self.loss_reduction = max_seq_length, loss_reduction
        self._max_skipped, self._decode_images = max_skipped, decode_images
        self._survey_executor = survey_executor
        self._reading = {"num_threads": num_threads, "num_workers": num_workers, "prefetch": prefetch}

    def open_train(self) -> ConversationSource:
        """The conversations to train on; raises what opening them raises."""
        return self._train()

    def open_held_out(self) -> ConversationSource | None:
        """The conversations whose loss is watched, if any."""
        return None if self._held_out is None else self._held_out()

    def describe(self) -> dict[str, str]:
        """Part -> what was found there, or why nothing was; raises nothing that opening it raises."""
        return {"train": _found(self._train), "held out": "none" if self._held_out is None else _found(self._held_out)}

    def largest_row(self) -> tuple[int, int]:
        """Tokens and tile slots of the largest rows that may occur; where images alone decide, of one image a row."""
        of_an_image = self.tiling.max_tiles + self.tiling.thumbnail if self.tiling.dynamic else 1
        return self.layout.largest(self.max_seq_length, of_an_image)

    def samples(
        self, source: ConversationSource, tokenizer: VlmTokenizer, tokens_per_tile: int, seed: int, folder: Path
    ) -> tuple[VlmSamples, Survey]:
        """Samples of a source, and their sizes.

        Args:
          source: Conversations.
          tokenizer: What `tokenizer.open` gave.
          tokens_per_tile: Vectors that stand for a tile.
          seed: Of the augmentation.
          folder: Where sizes are kept for the next start, and all faults are listed.

        Raises:
          ValueError: More records are unusable than may be.
        """
        samples = VlmSamples(
            source,
            tokenizer,
            self.tiling,
            tokens_per_tile=tokens_per_tile,
            max_seq_length=self.max_seq_length,
            seed=seed,
        )
        survey = take_survey(
            samples,
            decode_images=self._decode_images,
            max_skipped=self._max_skipped,
            folder=folder,
            executor=self._survey_executor,
        )
        return samples, survey

    def stream(
        self, samples: VlmSamples, survey: Survey, *, batch_size: int, seed: int, process_index: int, process_count: int
    ) -> VlmBatchStream:
        """The training stream; says in the log what its batches hold."""
        stream = VlmBatchStream(
            samples,
            survey,
            self.layout,
            batch_size=batch_size,
            seed=seed,
            loss_reduction=self.loss_reduction,
            max_skipped=self._max_skipped,
            process_index=process_index,
            process_count=process_count,
            **self._reading,
        )
        logging.info("rows of the first epoch: %s", describe_efficiency(stream.efficiency()))
        return stream


def describe_efficiency(figures: dict[str, float]) -> str:
    """`VlmBatchStream.efficiency` in words."""
    return (
        f"{figures['samples']:,.0f} samples in {figures['rows']:,.0f} rows ({figures['samples_per_row']:.2f} a row), "
        f"packing efficiency {figures['packing_efficiency']:.1%} (padding {figures['padding_waste']:.1%}), tile slots "
        f"used {figures['tile_efficiency']:.1%}, {figures['tokens_per_batch']:,.0f} tokens a batch "
        f"({figures['supervised_tokens_per_batch']:,.0f} supervised), {figures['tiles_per_batch']:,.1f} tiles a batch, "
        f"{figures['shapes']:.0f} shape(s) to compile"
    )


def _found(opener: OpenConversations) -> str:
    try:
        source = opener()
    except (OSError, ValueError) as error:
        return f"not available: {str(error).splitlines()[0]}"  # Gin adds lines on where it was called.
    return f"{len(source):,} conversations of {source.name}"
