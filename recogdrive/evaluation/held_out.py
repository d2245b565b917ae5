"""Held-out conversations: loss, accuracy, and what the model answers, while it trains."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Int64

from recogdrive.data.vlm.chat import tokenise_prompt
from recogdrive.data.vlm.conversations import Conversation
from recogdrive.data.vlm.rows import PADDING_POSITION, PADDING_SEGMENT
from recogdrive.data.vlm.samples import VlmSamples
from recogdrive.models.bridge import Params
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.training.sharding import DataParallel, HostBatch


class Batches(Protocol):
    """Batches by number, such as `recogdrive.data.vlm.stream.BatchesOnce`."""

    def __getitem__(self, index: int) -> HostBatch:
        """One batch: this process's rows."""
        ...


class HeldOutLoss:
    """Cross entropy and accuracy over the supervised tokens of fixed batches.

    Args:
      vlm: The model.
      batches: The same number of them in every process.
      chosen: Which of them to look at.
      sharding: Placement of batches.
      batch_size: Rows of a global batch.
    """

    def __init__(
        self, vlm: InternVL, batches: Batches, chosen: Sequence[int], sharding: DataParallel, batch_size: int
    ) -> None:
        self._batches, self._chosen = batches, chosen
        self._sharding = sharding
        self._batch_size = batch_size

        def sums(params: Params, batch: dict[str, jax.Array]) -> Any:
            with sharding.as_context():
                return jax.tree.map(lambda rows: rows.sum(), vlm.loss_rows(params, batch))

        self._sums = jax.jit(sums, out_shardings=sharding.replicated)

    def __call__(self, params: Params) -> dict[str, float]:
        """`loss`, one mean over the weighted tokens of all batches, and `accuracy`, the share of tokens guessed."""
        total = np.zeros(4)
        for number in self._chosen:
            placed = self._sharding.put_batch(self._batches[int(number)], self._batch_size)
            total += np.asarray(jax.device_get(self._sums(params, placed)), np.float64)
        loss, weight, right, supervised = total.tolist()
        return {"loss": loss / weight, "accuracy": right / supervised}


class SampleAnswers:
    """Answers to the first question of a few conversations, beside what the data says.

    Args:
      vlm: The model.
      samples: Conversations with tokenizer and tiling.
      chosen: Which of them, at least one.
      max_new_tokens: Length after which an answer is cut.
      sharding: Devices of the weights.
    """

    def __init__(
        self,
        vlm: InternVL,
        samples: VlmSamples,
        chosen: Sequence[int],
        max_new_tokens: int,
        sharding: DataParallel,
    ) -> None:
        self._tokenizer = samples.tokenizer
        conversations = [samples.conversations[int(i)] for i in chosen]
        self._shown = [(_question(c), next(t.text for t in c.turns if t.role == "gpt")) for c in conversations]
        self._batch = _prompt_rows([_prompt(c, samples) for c in conversations], samples)
        stop = [samples.tokenizer.eos_id]

        def generate(params: Params, batch: dict[str, jax.Array]) -> Any:
            with sharding.as_context():
                return vlm.generate(params, batch, max_new_tokens, stop)

        self._generate = jax.jit(generate, out_shardings=sharding.replicated)

    def __call__(self, params: Params) -> str:
        """Questions and both answers, as Markdown."""
        tokens, lengths = jax.device_get(self._generate(params, self._batch))
        parts = []
        for (question, expected), ids, length in zip(self._shown, tokens, lengths, strict=True):
            answer = self._tokenizer.decode([int(i) for i in ids[:length] if i != self._tokenizer.eos_id])
            parts.append(
                f"**Question**\n\n{_fenced(question)}\n\n**Data**\n\n{_fenced(expected)}\n\n**Model**\n\n{_fenced(answer)}"
            )
        return "\n\n---\n\n".join(parts)


class HeldOutEvaluation:
    """Everything there is to say about weights on held-out conversations, in the form `Trainer.fit` calls.

    Args:
      frozen: Weights that do not train, on the devices.
      loss: Gives the figures.
      answers: Gives the text, if any is wanted.

    Attributes:
      latest: Results of the last call; None before the first.
    """

    def __init__(self, frozen: Params, loss: HeldOutLoss, answers: SampleAnswers | None) -> None:
        self._frozen, self._loss, self._answers = frozen, loss, answers
        self.latest: Mapping[str, Any] | None = None

    def __call__(self, params: Params, step: int) -> Mapping[str, Any]:
        """Loss and accuracy by name, and `answers` as Markdown."""
        del step
        weights = {**self._frozen, **params}
        found: dict[str, Any] = dict(self._loss(weights))
        self.latest = found if self._answers is None else found | {"answers": self._answers(weights)}
        return self.latest


def evenly_spaced(length: int, count: int) -> Int64[np.ndarray, "n"]:
    """At most `count` of the numbers below `length`, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def _fenced(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _question(conversation: Conversation) -> str:
    return next(turn.text for turn in conversation.turns if turn.role == "human")


def _prompt(conversation: Conversation, samples: VlmSamples) -> tuple[np.ndarray, np.ndarray]:
    """Token ids up to the first answer, and the tiles they speak of."""
    first = next(i for i, turn in enumerate(conversation.turns) if turn.role == "gpt")
    turns = conversation.turns[:first]
    shown = sum(turn.text.count("<image>") for turn in turns if turn.role == "human")
    cut = samples.tiles_of(conversation)[:shown]
    ids = tokenise_prompt(turns, samples.tokenizer, [len(tiles) for tiles in cut], samples.tokens_per_tile)
    side = samples.tiling.image_size
    return ids, np.concatenate(cut) if cut else np.zeros((0, side, side, 3), np.uint8)


def _prompt_rows(prompts: Sequence[tuple[np.ndarray, np.ndarray]], samples: VlmSamples) -> dict[str, Any]:
    """Prompts as rows of one batch, left padded to the longest."""
    rows, length = len(prompts), max(len(ids) for ids, _ in prompts)
    slots, side = max(1, *(len(tiles) for _, tiles in prompts)), samples.tiling.image_size
    batch = {
        "input_ids": np.full((rows, length), samples.tokenizer.pad_id, np.int32),
        "segment_ids": np.full((rows, length), PADDING_SEGMENT, np.int32),
        "position_ids": np.full((rows, length), PADDING_POSITION, np.int32),
        "tiles": np.zeros((rows, slots, side, side, 3), np.uint8),
        "num_tiles": np.array([len(tiles) for _, tiles in prompts], np.int32),
    }
    for row, (ids, tiles) in enumerate(prompts):
        batch["input_ids"][row, length - len(ids) :] = ids
        batch["segment_ids"][row, length - len(ids) :] = 1
        batch["position_ids"][row, length - len(ids) :] = np.arange(len(ids))
        batch["tiles"][row, : len(tiles)] = tiles
    return batch
