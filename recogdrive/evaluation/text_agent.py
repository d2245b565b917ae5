"""The VLM alone as a planner: it writes its trajectory as text, which is read back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import gin
import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from recogdrive.data.samples import Batch, filled_batches
from recogdrive.data.types import FUTURE_FRAMES, Scene
from recogdrive.data.vlm.driving_prompt import AnswerError
from recogdrive.data.vlm.vlm_inputs import PromptRows
from recogdrive.evaluation.agents import Answer
from recogdrive.models.bridge import Params
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.loading import load_vlm


class Tokens(Protocol):
    """Text of token ids, as `VlmTokenizer` knows it.

    Attributes:
      eos_id: Ends an answer.
      vocab_size: Number of tokens.
    """

    eos_id: int
    vocab_size: int

    def decode(self, ids: Sequence[int]) -> str:
        """The text."""
        ...


class AnswerReader(Protocol):
    """Reads trajectories from text, as `DrivingPrompt` does."""

    def parse(self, text: str) -> Float[np.ndarray, "8 3"]:
        """The trajectory; raises `AnswerError` where there is none."""
        ...


class Prompts(PromptRows, Protocol):
    """Makes rows of prompt and tiles, padded on the left, as `ScenePrompts` does.

    Attributes:
      tokenizer: Of prompt and answer.
      prompt: Of the wording that the answer has.
    """

    tokenizer: Tokens
    prompt: AnswerReader

    def with_tokenizer_of(self, weights: Path) -> Self:
        """The same with the tokenizer beside these weights, unless another one is set."""
        ...


@gin.register
class TextPlanner:
    """Asks the VLM for a trajectory and reads its answer. An answer that states none is invalid, never filled up.

    Args:
      vlm: The model.
      weights: Folder of its weights in either layout, or a run that exported some; read when the first scene is
        planned.
      prompts: Makes rows of prompt and tiles, and knows tokenizer and wording.
      max_new_tokens: Longest answer; a longer one is cut off, and then most likely states no trajectory.
      batch_size: Scenes asked about at once; other numbers are filled up to it.
      name: What tables call this agent.

    Attributes:
      name: Likewise.
      answers: Token -> answer of every scene planned so far.

    Raises:
      ValueError: A number is not positive.

    Source: upstream Stage 1 evaluation of `ReCogDrive-VLM` as text.
    """

    def __init__(
        self,
        vlm: InternVL,
        weights: str | Path | None,
        prompts: Prompts,
        *,
        max_new_tokens: int = 256,
        batch_size: int = 8,
        name: str = "vlm_text",
    ) -> None:
        for argument, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"TextPlanner.{argument}={value!r} must be a positive whole number.")
        self.name = name
        self.answers: dict[str, Answer] = {}
        self.prompts = prompts if weights is None else prompts.with_tokenizer_of(Path(weights))
        self._vlm = vlm
        self._weights = weights
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size
        self._params: Params | None = None
        self._generate = jax.jit(self._generate_batch)

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """Poses as the answers state them; NaN where they state none, with the reason in `answers`.

        Raises:
          OSError: There are no weights.
          ValueError: The weights are of another model, the tokenizer has more tokens than that has rows, or a
            scene's prompt cannot be made.
        """
        planned = np.full((len(scenes), FUTURE_FRAMES, 3), np.nan, dtype=np.float32)
        for i, answer in enumerate(self.ask(self.prompts.inputs(scene) for scene in scenes)):
            self.answers[scenes[i].token] = answer
            if answer.poses is not None:
                planned[i] = answer.poses
        return planned

    def ask(self, rows: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Answer]:
        """The answer to every row of `ScenePrompts`; raises as `plan` does."""
        params = self._loaded()
        decode = self.prompts.tokenizer.decode
        for batch, count in filled_batches((dict(row) for row in rows), self._batch_size):
            tokens, lengths = (np.asarray(part) for part in self._generate(params, batch))
            for ids, length in zip(tokens[:count], lengths[:count], strict=True):
                yield read_answer(decode(ids[:length].tolist()), self.prompts.prompt)

    def _loaded(self) -> Params:
        if self._params is None:
            tokens, rows = self.prompts.tokenizer.vocab_size, self._vlm.config.language.vocab_size
            if tokens > rows:
                raise ValueError(
                    f"The tokenizer has {tokens} tokens, the VLM rows for {rows}; take the tokenizer that lies beside "
                    "the weights."
                )
            self._params = jax.device_put(load_vlm(self._vlm, self._weights).params)
        return self._params

    def _generate_batch(self, params: Params, batch: Batch) -> tuple[Int[Array, "B M"], Int[Array, "B"]]:
        return self._vlm.generate(params, batch, self._max_new_tokens, [self.prompts.tokenizer.eos_id])


def read_answer(text: str, reader: AnswerReader) -> Answer:
    """What a text says, or why it says nothing."""
    try:
        return Answer(text, reader.parse(text))
    except AnswerError as error:
        return Answer(text, None, str(error))
