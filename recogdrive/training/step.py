"""One optimiser update as a single compiled function."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import Array, Float, Key, PyTree

from recogdrive.training.optim import LearningRate, ema_update
from recogdrive.training.sharding import DataParallel, DeviceBatch
from recogdrive.training.state import Params, TrainState

Metrics = dict[str, Float[Array, ""]]
"""Scalars on the device."""

RESERVED_METRICS = ("loss", "grad_norm", "lr")
"""What every step reports, in the order it is shown and checked."""

TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""(state, batch) or (state, batch, frozen) -> (next state, metrics)."""


class Objective(Protocol):
    """What is minimised: the only thing a training stage has to define.

    Where an objective has them, two further methods are heeded: `decayed(name) -> bool` exempts tensors from weight
    decay, and `update_mask(name) -> array or None` (broadcast against the tensor) keeps parts of a tensor as they are.
    """

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters; pure and jittable."""
        ...

    def loss(self, params: Params, batch: DeviceBatch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss over a batch and further scalars to log; pure and jittable, all randomness from `key`."""
        ...


def make_train_step(
    objective: Objective,
    transformation: optax.GradientTransformation,
    learning_rate: LearningRate,
    sharding: DataParallel,
    placement: PyTree[Sharding],
    *,
    accumulation_steps: int = 1,
    ema_decay: float | None = None,
) -> TrainStep:
    """Compiles gradient, accumulation, clipping, update and moving average into one function that donates the state.

    The returned function takes the state, a global batch and, where there are any, weights that do not train; it
    returns the next state and the scalars `loss`, `grad_norm` (before clipping), `lr`, and whatever the objective
    reports, all left on the device. The objective sees trained, kept and frozen weights as one dict; those that the
    state keeps stay in their memory as they are. The randomness is `state.step_key()`; with accumulation, microbatch i
    gets that key folded with i.

    Args:
      objective: Gives the loss; it must be a mean over the batch for accumulation to equal the full batch.
      transformation: Optimiser, clipping included.
      learning_rate: Reported as `lr`.
      sharding: Devices, and placement of batches.
      placement: Where every leaf of the state goes, before a step as after it.
      accumulation_steps: Microbatches a batch is split into. Microbatch i holds rows i, i + A, i + 2A, ... so that
        every device finds its rows of each microbatch among those it already has.
      ema_decay: Decay of the moving average; None where the state has none.

    Raises:
      ValueError: `ema_decay` outside [0, 1); when traced, a metric of the objective with a reserved name.
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay={ema_decay} must be in [0, 1), or None for no average.")

    def gradients(params: Params, batch: DeviceBatch, key: Key[Array, ""], frozen: Params) -> tuple[Params, Metrics]:
        def loss_of(trained: Params) -> tuple[Float[Array, ""], Metrics]:
            return objective.loss({**frozen, **trained}, batch, key)

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        taken = sorted(set(metrics) & set(RESERVED_METRICS))
        if taken:
            raise ValueError(f"the objective's metrics {taken} carry names the training step uses; rename them.")
        return grads, {"loss": loss, **metrics}

    def accumulated(params: Params, batch: DeviceBatch, key: Key[Array, ""], frozen: Params) -> tuple[Params, Metrics]:
        if accumulation_steps == 1:
            return gradients(params, batch, key, frozen)

        def split(rows: Array) -> Array:
            micro = rows.reshape(-1, accumulation_steps, *rows.shape[1:]).swapaxes(0, 1)  # (A, B / A, ...)
            return jax.lax.with_sharding_constraint(micro, sharding.microbatch_sharding)

        def add(total: Params, microbatch: tuple[Array, DeviceBatch]) -> tuple[Params, Metrics]:
            index, rows = microbatch
            grads, metrics = gradients(params, rows, jax.random.fold_in(key, index), frozen)
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, metrics = jax.lax.scan(add, zeros, (jnp.arange(accumulation_steps), jax.tree.map(split, batch)))
        return jax.tree.map(lambda grad: grad / accumulation_steps, total), jax.tree.map(jnp.mean, metrics)

    update_mask = getattr(objective, "update_mask", lambda name: None)

    def masked(tensors: Params) -> Params:
        masks = {name: update_mask(name) for name in tensors}
        return {name: value if masks[name] is None else value * masks[name] for name, value in tensors.items()}

    def train_step(state: TrainState, batch: DeviceBatch, frozen: Params | None = None) -> tuple[TrainState, Metrics]:
        with sharding.as_context():
            grads, metrics = accumulated(
                state.params, batch, state.step_key(), {**(frozen or {}), **(state.kept or {})}
            )
        grads = masked(grads)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        updates = masked(updates)  # Weight decay moves what has no gradient, too.
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None or ema_decay is None else ema_update(state.ema, params, ema_decay)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads), "lr": learning_rate(state.step)}
        return TrainState(state.step + 1, params, opt_state, ema, state.key, state.kept), metrics

    # Stated placements keep the state of one step a valid input of the next without compiling again.
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(placement, sharding.replicated),
        compiler_options=sharding.compiler_options or None,
    )
