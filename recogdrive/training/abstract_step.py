"""A training step as shapes: what is compiled to ask what it needs, here or on machines that are not here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jaxtyping import PyTree

from recogdrive.training.first_state import FirstState
from recogdrive.training.loop import Trainer
from recogdrive.training.sharding import DataParallel
from recogdrive.training.state import TrainState
from recogdrive.training.step import Objective, TrainStep, make_train_step

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class StepShapes:
    """What a training stage compiles.

    Attributes:
      trainer: Optimiser, accumulation, moving average and placement.
      objective: What is trained.
      batch: Shapes and types of a global batch, rows first.
      frozen: Those of weights that do not train.
      kept: Those of weights that do not train and belong to the run, such as a reference policy.
      flops: Operations of a step that the model asks for, recomputation left out; None where they are to be counted in
        the program.
      dynamic_trips: The most often that loops run whose number of runs depends on data.
    """

    trainer: Trainer
    objective: Objective
    batch: Shapes
    frozen: Shapes | None = None
    kept: Shapes | None = None
    flops: float | None = None
    dynamic_trips: int = 1

    @property
    def rows(self) -> int:
        """Of a global batch."""
        return next(iter(self.batch.values())).shape[0]


class AbstractStep:
    """A step with the placement of everything it takes; nothing is allocated.

    Args:
      shapes: What is compiled.

    Attributes:
      sharding: Placement on devices.
      step: The compiled function, before it is compiled.
      state, batch, frozen: Its arguments, as shapes with placements.

    Raises:
      ValueError: The batch does not divide over devices and accumulation steps.
    """

    def __init__(self, shapes: StepShapes) -> None:
        trainer, objective, rows = shapes.trainer, shapes.objective, shapes.rows
        self._prefetch = trainer.prefetch
        self.sharding = trainer.sharding or DataParallel()
        self.sharding.check_batch(rows, trainer.accumulation_steps)
        transformation, learning_rate = trainer.optimizer.build(
            rows, rows, trainer.steps, getattr(objective, "decayed", None)
        )
        first = FirstState(
            objective,
            transformation,
            self.sharding,
            seed=trainer.seed,
            with_ema=trainer.ema_decay is not None,
            kept=None if shapes.kept is None else dict(shapes.kept),
        )
        self.step: TrainStep = make_train_step(
            objective,
            transformation,
            learning_rate,
            self.sharding,
            first.placement,
            accumulation_steps=trainer.accumulation_steps,
            ema_decay=trainer.ema_decay,
        )
        self.state: TrainState = first.template
        self.batch = {name: _place(leaf, self.sharding.batch_sharding) for name, leaf in shapes.batch.items()}
        frozen = dict(shapes.frozen or {})
        self.frozen = jax.tree.map(_place, frozen, self.sharding.state_sharding(frozen))

    def lower(self) -> jax.stages.Lowered:
        """The program as it is handed to the compiler."""
        return self.step.lower(self.state, self.batch, self.frozen)

    def argument_bytes(self) -> dict[str, int]:
        """What is held on one device -> its bytes, without what a step needs besides.

        `weights`, `optimizer`, where there are any `frozen weights`, `kept weights` and `moving average`, and `batch`.
        """
        state = self.state
        held = {"weights": bytes_on_a_device(state.params), "optimizer": bytes_on_a_device(state.opt_state)}
        parts = {"frozen weights": self.frozen, "kept weights": state.kept, "moving average": state.ema}
        held |= {name: bytes_on_a_device(part) for name, part in parts.items() if part}
        return held | {"batch": bytes_on_a_device(self.batch)}

    def waiting_bytes(self) -> int:
        """Bytes on one device of the batches that wait there for their step."""
        return bytes_on_a_device(self.batch) * self._prefetch


def bytes_on_a_device(tree: PyTree[jax.ShapeDtypeStruct]) -> int:
    """Bytes of a tree's leaves on one device, by their placements."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
