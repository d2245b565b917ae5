"""Stage 1: the VLM is fine-tuned on driving conversations."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from recogdrive.data.vlm.fine_tuning_data import FineTuningData
from recogdrive.data.vlm.stream import BatchesOnce, VlmBatchStream
from recogdrive.data.vlm.tokenizer import VlmTokenizer
from recogdrive.data.vlm.weights_folder import EXPORT_FOLDER, ORIGINAL, TRANSFORMERS, find_weights_folder
from recogdrive.evaluation.held_out import HeldOutEvaluation, HeldOutLoss, SampleAnswers, evenly_spaced
from recogdrive.experiment import ConfigurationError
from recogdrive.hosts import member
from recogdrive.models.bridge import Params
from recogdrive.models.vlm.encoder import forward_flops, head_flops
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.lora import LORA_A, merge_lora
from recogdrive.models.vlm.trainable import TrainableSet
from recogdrive.models.vlm.weights import LoadedVlm, load_weights, save_original, save_transformers
from recogdrive.run_folder import RunFolder, write_text
from recogdrive.stages.base import Description, Parameter
from recogdrive.training.abstract_step import StepShapes
from recogdrive.training.fine_tuning import FineTuning
from recogdrive.training.loop import Trainer
from recogdrive.training.memory import training_memory
from recogdrive.training.sharding import DataParallel

ANSWERS_FILE = "answers.md"
"""Within a run folder: what the final weights answer to held-out questions."""
_SAVERS = {ORIGINAL: save_original, TRANSFORMERS: save_transformers}


@gin.register
class VlmSft:
    """Fine-tunes a VLM and exports its weights in the layouts of the original code and of transformers.

    Args:
      vlm: The model; its sizes must be those of the weights.
      data: Conversations, tokenizer, tiles, rows.
      trainer: The training loop.
      batch_size: Rows of an update: rows of a device's micro-batch x devices x accumulation steps.
      epochs: Length of the run, maybe fractional; None leaves it to the trainer's steps.
      trainable: Which parts train; all unless given.
      from_scratch: Whether random weights are meant where no weights are named.
      seed: Of order and augmentation; the trainer has its own for noise and random weights.
      held_out_batches: Batches of held-out conversations whose loss is watched, evenly spaced over all there are; None
        takes all.
      answers: Held-out conversations that the model answers at each evaluation.
      max_new_tokens: Length after which an answer is cut.
      export: Layouts to write, of "original" and "transformers".
      export_dtype: Of the written weights, "bfloat16" or "float32".

    Raises:
      ValueError: A number out of range, an unknown layout or precision, tiles of another side than the model's, a
        micro-batch that the model's groups of rows do not divide.

    Source: upstream `internvl_chat_finetune.py`.
    """

    runs_on_several_processes = True

    def __init__(
        self,
        vlm: InternVL,
        data: FineTuningData,
        trainer: Trainer,
        *,
        batch_size: int = 128,
        epochs: float | None = None,
        trainable: TrainableSet | None = None,
        from_scratch: bool = False,
        seed: int = 42,
        held_out_batches: int | None = 32,
        answers: int = 4,
        max_new_tokens: int = 256,
        export: Sequence[str] = (ORIGINAL, TRANSFORMERS),
        export_dtype: str = "bfloat16",
    ) -> None:
        if unknown := [layout for layout in export if layout not in _SAVERS]:
            raise ValueError(f"VlmSft.export={list(export)} names {unknown[0]!r}; layouts are {', '.join(_SAVERS)}.")
        if export_dtype not in ("bfloat16", "float32"):
            raise ValueError(f"VlmSft.export_dtype={export_dtype!r} must be 'bfloat16' or 'float32'.")
        if data.tiling.image_size != vlm.config.tile_size:
            raise ValueError(
                f"Tiling.image_size={data.tiling.image_size}, but the model's tiles have {vlm.config.tile_size} pixels "
                "a side; set both by IMAGE_SIZE."
            )
        if epochs is not None and not epochs > 0:
            raise ValueError(f"VlmSft.epochs={epochs} must be positive, or None to train for the trainer's steps.")
        if answers < 0 or max_new_tokens < 1 or (held_out_batches is not None and held_out_batches < 1):
            raise ValueError(
                f"VlmSft.answers={answers} must not be negative, max_new_tokens={max_new_tokens} and "
                f"held_out_batches={held_out_batches} positive."
            )
        _check_groups(vlm, batch_size, trainer.accumulation_steps)
        self._vlm = vlm
        self._data = data
        self._trainer = trainer
        self._batch_size = batch_size
        self._epochs = epochs
        self._objective = FineTuning(vlm, trainable)
        self._from_scratch = from_scratch
        self._seed = seed
        self._held_out_batches = held_out_batches
        self._answers = answers
        self._max_new_tokens = max_new_tokens
        self._export = tuple(export)
        self._export_dtype = export_dtype

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Trains from the weights in `parent`, a checkpoint folder or a run with an export, and exports the result."""
        if parent is None and not self._from_scratch:
            raise ValueError(
                "Fine-tuning needs weights: set VLM_WEIGHTS to a folder of InternVL3 weights, or VlmSft.from_scratch."
            )
        sharding = self._trainer.sharding or DataParallel()
        tokenizer = self._data.tokenizer.open(parent)
        self._check_tokenizer(tokenizer)
        stream, found = self._training_stream(tokenizer, folder.path)
        trainer = self._sized_trainer(stream)
        initial, frozen, origin = self._initial(parent, trainer.seed)
        frozen = sharding.put_state(frozen)
        folder.update(data=self._data.describe() | {"train": found}, seed=self._seed, weights=origin)
        folder.update(steps=trainer.steps)
        evaluation = self._evaluation(tokenizer, frozen, folder.path, sharding)
        state = trainer.fit(
            self._objective, stream, folder.path, evaluation, initial, frozen, identity={"weights": origin}
        )
        stream.close()
        self._write_export(folder.path, {**frozen, **state.weights}, tokenizer)
        if evaluation is None:
            return {}
        results = evaluation.latest or evaluation(state.weights, trainer.steps)
        figures = {name: value for name, value in results.items() if isinstance(value, float)}
        folder.update(held_out=figures)
        if "answers" in results and member.is_lead():
            write_text(folder.path / ANSWERS_FILE, results["answers"] + "\n")
        return figures

    def describe(self) -> Description:
        """Weights, data, and the memory of one training step, as the compiler for this device reports it."""
        parameters = [Parameter(*row) for row in self._vlm.parameter_table()]
        return Description(
            data=self._data.describe(),
            parameters=parameters,
            memory_bytes=training_memory(self.step_shapes()),
            notes=[
                f"{self._batch_size} rows an update in {self._trainer.accumulation_steps} micro-batches",
                f"memory of a step as compiled for {jax.devices()[0].platform}: on a CPU it holds attention matrices "
                "that kernels of accelerators never make",
            ],
        )

    def step_shapes(self) -> StepShapes:
        """What a training step is compiled from, with the largest rows that may occur."""
        rows, side = self._batch_size, self._vlm.config.tile_size
        tokens, tiles = self._data.largest_row()
        shapes = dict.fromkeys(("input_ids", "segment_ids", "position_ids", "labels"), ((rows, tokens), jnp.int32))
        shapes |= {"loss_weight": ((rows, tokens), jnp.float32), "num_tiles": ((rows,), jnp.int32)}
        shapes |= {"tiles": ((rows, tiles, side, side, 3), jnp.uint8)}
        # Forward once, backward twice; every token is taken as supervised.
        forward = forward_flops(self._vlm.config, tokens, tiles) + head_flops(self._vlm.config, tokens)
        return StepShapes(
            trainer=self._trainer,
            objective=self._objective,
            batch={name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()},
            frozen=self._objective.frozen_shapes(),
            flops=3 * rows * forward,
            dynamic_trips=math.ceil(tokens / self._vlm.loss_chunk),
        )

    def _training_stream(self, tokenizer: VlmTokenizer, path: Path) -> tuple[VlmBatchStream, str]:
        """The stream, and what was found in the conversations."""
        source = self._data.open_train()
        with member.lead_first():  # The others find what it measured.
            samples, survey = self._data.samples(
                source, tokenizer, self._vlm.config.tokens_per_tile, self._seed, path / "data" / "train"
            )
        stream = self._data.stream(
            samples,
            survey,
            batch_size=self._batch_size,
            seed=self._seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return stream, f"{source.name}: {survey.summary()}"

    def _check_tokenizer(self, tokenizer: VlmTokenizer) -> None:
        vocab, context = self._vlm.config.language.vocab_size, self._vlm.img_context_id
        if tokenizer.vocab_size > vocab or tokenizer.img_context_id != context:
            raise ConfigurationError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, {tokenizer.img_context_id} for image vectors; the "
                f"model expects at most {vocab} and {context}. Set VOCAB_SIZE and IMG_CONTEXT_ID to the tokenizer's."
            )

    def _sized_trainer(self, stream: VlmBatchStream) -> Trainer:
        """The trainer with the length of the run in updates."""
        if self._epochs is None:
            return self._trainer
        trainer = copy.copy(self._trainer)
        trainer.steps = updates_of(self._epochs, stream.samples_per_epoch, self._batch_size)
        logging.info("%g epochs are %d updates of %d rows", self._epochs, trainer.steps, self._batch_size)
        return trainer

    def _initial(self, parent: Path | None, seed: int) -> tuple[Params | None, Params, str]:
        """Parameters that train (None where they are drawn), those that do not, and where they come from."""
        if parent is None:
            key, _ = jax.random.split(jax.random.key(seed))  # As the trainer does.
            return None, jax.jit(self._objective.init_frozen)(key), f"random, seed {seed}"
        loaded = load_weights(find_weights_folder(parent), vocab_size=self._vlm.config.language.vocab_size, seed=seed)
        require_sizes(loaded, self._vlm, parent)
        params: dict[str, Any] = dict(loaded.params)
        if self._vlm.lora is not None:
            drawn = jax.eval_shape(self._vlm.init, jax.random.key(0))
            adapters = {name for name in drawn if name not in params}
            key = jax.random.key(seed)
            params |= jax.jit(lambda k: {n: v for n, v in self._vlm.init(k).items() if n in adapters})(key)
        return *self._objective.split(params), loaded.fingerprint

    def _evaluation(
        self, tokenizer: VlmTokenizer, frozen: Params, path: Path, sharding: DataParallel
    ) -> HeldOutEvaluation | None:
        source = self._data.open_held_out()
        if source is None:
            return None
        with member.lead_first():
            samples, survey = self._data.samples(
                source, tokenizer, self._vlm.config.tokens_per_tile, self._seed, path / "data" / "held_out"
            )
        rows = self._batch_size // self._trainer.accumulation_steps
        batches = BatchesOnce(
            samples,
            survey,
            self._data.layout,
            batch_size=rows,
            loss_reduction=self._data.loss_reduction,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        chosen = evenly_spaced(len(batches), self._held_out_batches or len(batches))
        loss = HeldOutLoss(self._vlm, batches, chosen, sharding, rows)
        shown = survey.usable[evenly_spaced(len(survey.usable), self._answers)]
        answers = SampleAnswers(self._vlm, samples, shown, self._max_new_tokens, sharding) if len(shown) else None
        return HeldOutEvaluation(frozen, loss, answers)

    def _write_export(self, path: Path, params: Params, tokenizer: VlmTokenizer) -> None:
        weights = member.host_weights(params)
        if not member.is_lead():
            return
        if self._vlm.lora is not None:
            # Adapters are added in float32 to weights that were kept in the compute dtype.
            adapted = {f"{name.removesuffix(LORA_A)}.weight" for name in weights if name.endswith(LORA_A)}
            weights |= {name: weights[name].astype(np.float32) for name in adapted}
            weights = {name: np.asarray(value) for name, value in merge_lora(weights, self._vlm.lora).items()}
        for layout in self._export:
            target = path / EXPORT_FOLDER / layout
            # A run that was stopped after its last step writes them again.
            _SAVERS[layout](target, self._vlm.config, weights, tokenizer, dtype=self._export_dtype, overwrite=True)
            logging.info("weights in the %s layout: %s", layout, target)


def updates_of(epochs: float, rows_per_epoch: int, batch_size: int) -> int:
    """Updates of a run: ceil(epochs x max(1, whole batches of an epoch)). Source: spec/vlm_sft.md A6."""
    return math.ceil(epochs * max(1, rows_per_epoch // batch_size))


def require_sizes(loaded: LoadedVlm, vlm: InternVL, folder: Path) -> None:
    """Checks that weights are of the configured model.

    Raises:
      ConfigurationError: They are not; names every size that differs.
    """
    found, wanted = _flat(loaded.config), _flat(vlm.config)
    # No sizes of weights: the tiles' side is the user's choice, the template always the same, longer rows are no error.
    passed_over = {"image_size", "template", "language.max_positions"}
    wrong = [
        f"{name} is {found[name]!r}, configured {wanted[name]!r}"
        for name in wanted
        if name not in passed_over and found[name] != wanted[name]
    ]
    if wrong:
        raise ConfigurationError(f"The weights in {folder} are of another model: {'; '.join(wrong)}.")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "__dataclass_fields__"):
            values |= _flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def _check_groups(vlm: InternVL, batch_size: int, accumulation_steps: int) -> None:
    micro_batch = batch_size // accumulation_steps
    group = vlm.rows_per_group
    if group is not None and micro_batch % group:
        raise ValueError(
            f"A micro-batch has {micro_batch} rows (batch_size={batch_size} in {accumulation_steps} steps), which "
            f"InternVL.rows_per_group={group} does not divide."
        )
