"""How much memory a training step takes on each device, asked of the compiler before anything runs."""

from collections.abc import Mapping

import jax
from jaxtyping import PyTree

from recogdrive.training.first_state import FirstState
from recogdrive.training.loop import Trainer
from recogdrive.training.sharding import DataParallel
from recogdrive.training.step import Objective, make_train_step


def training_memory(
    trainer: Trainer,
    objective: Objective,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    frozen: Mapping[str, jax.ShapeDtypeStruct] | None = None,
    kept: Mapping[str, jax.ShapeDtypeStruct] | None = None,
) -> dict[str, int]:
    """Compiles the training step for this machine's devices and reads off what it needs on each of them.

    Args:
      trainer: Optimiser, accumulation, moving average and placement.
      objective: What is trained.
      batch: Shapes and types of a global batch, rows first.
      frozen: Those of weights that do not train.
      kept: Those of weights that do not train and belong to the run, such as a reference policy.

    Returns:
      What needs memory -> bytes on one device: `weights`, `optimizer`, where there are any `frozen weights`, `kept
      weights` and `moving average`, `batch` (times the number of batches put there ahead), `step` (gradients,
      activations and everything else that lives during a step).

    Raises:
      ValueError: The batch does not divide over devices and accumulation steps.
    """
    sharding = trainer.sharding or DataParallel()
    rows = next(iter(batch.values())).shape[0]
    sharding.check_batch(rows, trainer.accumulation_steps)
    transformation, learning_rate = trainer.optimizer.build(
        rows, rows, trainer.steps, getattr(objective, "decayed", None)
    )
    first = FirstState(
        objective,
        transformation,
        sharding,
        seed=trainer.seed,
        with_ema=trainer.ema_decay is not None,
        kept=None if kept is None else dict(kept),
    )
    step = make_train_step(
        objective,
        transformation,
        learning_rate,
        sharding,
        first.placement,
        accumulation_steps=trainer.accumulation_steps,
        ema_decay=trainer.ema_decay,
    )
    state = first.template
    placed_batch = {name: _place(leaf, sharding.batch_sharding) for name, leaf in batch.items()}
    frozen = dict(frozen or {})
    placed_frozen = jax.tree.map(_place, frozen, sharding.state_sharding(frozen))
    compiled = step.lower(state, placed_batch, placed_frozen).compile()
    needed = {"weights": _bytes(state.params), "optimizer": _bytes(state.opt_state)}
    if frozen:
        needed["frozen weights"] = _bytes(placed_frozen)
    if state.kept is not None:
        needed["kept weights"] = _bytes(state.kept)
    if state.ema is not None:
        needed["moving average"] = _bytes(state.ema)
    needed["batch"] = _bytes(placed_batch) * (1 + trainer.prefetch)
    needed["step"] = compiled.memory_analysis().temp_size_in_bytes
    return needed


def _place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _bytes(tree: PyTree) -> int:
    """Bytes of a tree's leaves on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        count = 1
        for size in leaf.sharding.shard_shape(leaf.shape):
            count *= size
        total += count * leaf.dtype.itemsize
    return total
