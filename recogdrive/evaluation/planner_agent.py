"""A trained planner as an agent."""

import copy
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from recogdrive.data.context import ContextSource
from recogdrive.data.samples import Batch, filled_batches, planner_inputs
from recogdrive.data.types import Scene
from recogdrive.models.bridge import Params
from recogdrive.models.planner.official_checkpoint import load_official
from recogdrive.models.planner.planner import ParameterRow
from recogdrive.training.checkpoint import load_params
from recogdrive.training.step import Objective

OFFICIAL_SUFFIX = ".ckpt"


class TrainablePlanner(Objective, Protocol):
    """A model that learns from batches and plans from them, without holding weights.

    A planner that needs weights which do not train has a method `frozen() -> Params`; they join its own in the
    dictionary that `loss` and `plan` get. One that adds to the weights of a planner of its own, `planner`, has a method
    `complete(params) -> Params`, which adds what a file of that planner lacks.

    Attributes:
      name: What tables and reports call it.
      context_width: Width of the context tokens it reads; 0 where it reads none.
    """

    name: str
    context_width: int

    def parameter_table(self) -> Sequence[ParameterRow]:
        """Every trainable tensor."""
        ...

    def plan(self, params: Params, batch: Batch, keys: Key[Array, "B"]) -> Float[Array, "B 8 3"]:
        """A trajectory a scene, each with its own key; pure and jittable."""
        ...


def trained_weights(planner: TrainablePlanner, path: Path) -> Params:
    """Weights from a run folder (its best checkpoint; the moving average where it kept one) or an official `.ckpt`.

    Raises:
      OSError: Nothing is there.
      CheckpointError: No checkpoint there can be used.
      ValueError: The weights do not fit the planner; every misfit is named.
    """
    alone = getattr(planner, "planner", planner)
    complete = getattr(planner, "complete", lambda params: params)
    if path.suffix == OFFICIAL_SUFFIX:
        return complete(load_official(path, alone))
    try:
        return load_params(path, template=jax.eval_shape(planner.init, jax.random.key(0)))
    except ValueError as error:
        if alone is planner:
            raise
        try:
            return complete(load_params(path, template=jax.eval_shape(alone.init, jax.random.key(0))))
        except ValueError:
            raise error from None


def frozen_weights(planner: Objective) -> Params:
    """Weights that a planner needs and that do not train; most have none."""
    frozen = getattr(planner, "frozen", None)
    return {} if frozen is None else frozen()


class PlannerAgent:
    """Plans with a model and given weights.

    The noise of a scene is drawn from the seed and the scene's token, so a plan depends neither on the other scenes of
    a split nor on the batch size.

    Args:
      planner: What plans: a network and its sampler.
      params: Its weights; None where they are set later, as the attribute `params`, which may change between plans.
      context: Makes the context tokens.
      batch_size: Scenes planned at once; other numbers are filled up to it.
      seed: Of the sampler's noise.
      name: What tables call this agent; the planner's own name unless given.

    Raises:
      ValueError: The batch size is not positive.
    """

    def __init__(
        self,
        planner: TrainablePlanner,
        params: Params | None,
        context: ContextSource,
        *,
        batch_size: int = 64,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be positive.")
        self.name = planner.name if name is None else name
        self.params = params
        self._planner = planner
        self._context = context
        self._batch_size = batch_size
        self._key = jax.random.key(seed)
        self._sample = jax.jit(self._sample_batch)
        self._frozen: Params | None = None

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """Trajectories for the scenes: x, y in metres and heading in radians at 0.5 ... 4 s, scene frame."""
        return self.plan_batches(planning_batches(scenes, self._context, self._batch_size))

    def plan_batches(self, batches: Sequence[tuple[Batch, int]]) -> Float32[np.ndarray, "N 8 3"]:
        """The same for batches made before (`filled_batches`), which hold `scene_id` (B,) uint32 beside the inputs."""
        if self._frozen is None:
            self._frozen = frozen_weights(self._planner)
        planned = [(self._sample(self._key, self._frozen, self.params, batch), rows) for batch, rows in batches]
        return np.concatenate([np.asarray(trajectories)[:rows] for trajectories, rows in planned])

    def with_seed(self, seed: int) -> Self:
        """The same agent with other noise; the two share their compiled program."""
        other = copy.copy(self)
        other._key = jax.random.key(seed)
        return other

    def _sample_batch(self, key: Key[Array, ""], frozen: Params, params: Params, batch: Batch) -> Float[Array, "B 8 3"]:
        keys = jax.vmap(lambda scene_id: jax.random.fold_in(key, scene_id))(batch["scene_id"])
        return self._planner.plan({**frozen, **params}, batch, keys)


def planning_batches(scenes: Sequence[Scene], context: ContextSource, batch_size: int) -> list[tuple[Batch, int]]:
    """Inputs of scenes that are planned again and again, as `PlannerAgent.plan_batches` takes them."""
    rows = (
        planner_inputs(scene, context) | {"scene_id": np.uint32(zlib.crc32(scene.token.encode()))} for scene in scenes
    )
    return list(filled_batches(rows, batch_size))
