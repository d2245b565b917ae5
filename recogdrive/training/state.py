"""What a training step carries from one step to the next."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt32

Params = dict[str, Float[Array, "..."]]
"""Trainable tensors by name."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The whole state of a training run except for where its data stream is.

    Attributes:
      step: int32 scalar, updates done so far.
      params: Trainable tensors by name, float32 master weights.
      opt_state: State of the optimiser.
      ema: Moving average of `params`, or None where no average is kept.
      key: Words of the run's base PRNG key, raw so that checkpoints hold plain arrays; `step_key()` is what steps use.
      kept: Weights that do not train and yet belong to the run, such as a reference policy; None where there are none.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params | None
    key: UInt32[Array, "words"]
    kept: Params | None = None

    def step_key(self) -> Key[Array, ""]:
        """The key of the step about to run: differs from step to step, the same whenever a step is replayed."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)

    @property
    def weights(self) -> Params:
        """The weights to evaluate and export: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


def create_state(
    params: Params,
    transformation: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    with_ema: bool,
    kept: Params | None = None,
) -> TrainState:
    """The state before the first step; the moving average starts as a copy of the parameters.

    Args:
      params: Initial parameters.
      transformation: The optimiser.
      key: Typed base key (`jax.random.key`).
      with_ema: Whether a moving average is kept.
      kept: Weights that belong to the run and do not train; None where there are none.
    """
    # Weakly typed values (`jnp.full(shape, 0.0)`) become strong ones in the first step, which would compile it twice.
    params, kept = jax.tree.map(lambda value: jnp.asarray(value, dtype=value.dtype), (params, kept))
    # Real copies: the step donates the whole state, and a buffer can be donated once only.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=transformation.init(params),
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
        key=jax.random.key_data(key),
        kept=kept,
    )


Stored = dict[str, Array | dict[str, Array]]


def to_stored(state: TrainState) -> Stored:
    """The state as nested dictionaries of plain arrays, the layout of a checkpoint.

    The optimiser's state is keyed by the path of each leaf. Works on abstract states (`jax.eval_shape`) too.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    stored: Stored = {
        "step": state.step,
        "params": dict(state.params),
        "opt_state": {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves},
        "key": state.key,
    }
    if state.ema is not None:
        stored["ema"] = dict(state.ema)
    if state.kept is not None:
        stored["kept"] = dict(state.kept)
    return stored


def from_stored(stored: Stored, template: TrainState) -> TrainState:
    """Inverse of `to_stored`; `template` (concrete or abstract) gives the tree structure of the optimiser's state."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(template.opt_state)]
    leaves = [stored["opt_state"][jax.tree_util.keystr(path, simple=True, separator="/")] for path in paths]
    return TrainState(
        step=stored["step"],
        params=stored["params"],
        opt_state=jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template.opt_state), leaves),
        ema=stored.get("ema"),
        key=stored["key"],
        kept=stored.get("kept"),
    )
