"""The state of a run before its first step: its layout at once, its arrays when they are needed."""

import jax
import optax

from recogdrive.training.saved import parameter_differences
from recogdrive.training.sharding import DataParallel
from recogdrive.training.state import Params, TrainState, create_state
from recogdrive.training.step import Objective


class FirstState:
    """How a run starts where there is no checkpoint to go on from.

    Args:
      objective: Draws the weights where none are given.
      transformation: The optimiser.
      sharding: Placement on devices.
      seed: Of drawn weights and of all noise.
      with_ema: Whether a moving average is kept.
      init_params: Weights to start from; None draws them. Shapes (`jax.ShapeDtypeStruct`) do where a checkpoint will be
        restored.
      kept: Weights that belong to the run and do not train, or their shapes.

    Attributes:
      template: Shape, dtype and placement of every leaf.
      placement: The placements alone.

    Raises:
      ValueError: `init_params` does not fit the objective, or weights that are kept carry names of some that train.
    """

    def __init__(
        self,
        objective: Objective,
        transformation: optax.GradientTransformation,
        sharding: DataParallel,
        *,
        seed: int,
        with_ema: bool,
        init_params: Params | None = None,
        kept: Params | None = None,
    ) -> None:
        self._objective = objective
        self._sharding = sharding
        self._init_params = init_params
        self._kept = kept or None
        self._init_key, run_key = jax.random.split(jax.random.key(seed))
        self._create = lambda params, kept: create_state(params, transformation, run_key, with_ema=with_ema, kept=kept)
        shapes = jax.eval_shape(objective.init, self._init_key)
        if init_params is not None and (different := parameter_differences(init_params, shapes)):
            raise ValueError(f"the weights to start from do not fit this model:{different}")
        if taken := sorted(set(shapes) & set(kept or {})):
            raise ValueError(
                f"{len(taken)} weights that the run keeps carry names of weights that train, e.g. {taken[0]!r}; give "
                "them a prefix."
            )
        layout = jax.eval_shape(self._create, shapes, self._kept)
        self.placement = sharding.state_sharding(layout)
        self.template: TrainState = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), layout, self.placement
        )

    def make(self) -> TrainState:
        """The state, on the devices; what was handed in stays valid.

        Raises:
          ValueError: Weights were given as shapes only.
        """
        given = {"init_params": self._init_params, "kept": self._kept}
        if missing := [name for name, weights in given.items() if _is_abstract(weights)]:
            raise ValueError(
                f"there is no checkpoint to go on from, and {' and '.join(missing)} of the run were given as shapes "
                "only; load the weights that the run starts from."
            )
        kept = None if self._kept is None else self._sharding.put_state(self._kept)
        # Donated, because two copies of a large model do not fit.
        if self._init_params is None:
            draw = jax.jit(
                lambda kept: self._create(self._objective.init(self._init_key), kept),
                out_shardings=self.placement,
                donate_argnums=0,
            )
            return draw(kept)
        start = jax.jit(self._create, out_shardings=self.placement, donate_argnums=(0, 1))
        return start(self._sharding.put_state(self._init_params), kept)


def _is_abstract(weights: Params | None) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(weights))
