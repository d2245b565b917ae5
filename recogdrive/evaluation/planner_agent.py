"""A trained planner as an agent."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from recogdrive.data.context import ContextSource
from recogdrive.data.samples import Batch, filled_batches, planner_inputs
from recogdrive.data.types import Scene
from recogdrive.models.bridge import Params
from recogdrive.models.planner.planner import DiffusionPlanner


class PlannerAgent:
    """Plans with a diffusion planner and given weights.

    The noise of a scene is drawn from the seed and the scene's token, so a plan depends neither on the other scenes of
    a split nor on the batch size.

    Args:
      planner: The network and its sampler.
      params: Its weights; None where they are set later, as the attribute `params`, which may change between plans.
      context: Makes the context tokens.
      batch_size: Scenes planned at once; other numbers are filled up to it.
      seed: Of the sampler's noise.
      name: What tables call this agent.

    Raises:
      ValueError: The batch size is not positive.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        params: Params | None,
        context: ContextSource,
        *,
        batch_size: int = 64,
        seed: int = 0,
        name: str = "planner",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be positive.")
        self.name = name
        self.params = params
        self._planner = planner
        self._context = context
        self._batch_size = batch_size
        self._key = jax.random.key(seed)
        self._sample = jax.jit(self._sample_batch)

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """Trajectories for the scenes: x, y in metres and heading in radians at 0.5 ... 4 s, scene frame."""
        return self.plan_batches(planning_batches(scenes, self._context, self._batch_size))

    def plan_batches(self, batches: Sequence[tuple[Batch, int]]) -> Float32[np.ndarray, "N 8 3"]:
        """The same for batches made before (`filled_batches`), which hold `scene_id` (B,) uint32 beside the inputs."""
        planned = [(self._sample(self.params, batch), rows) for batch, rows in batches]
        return np.concatenate([np.asarray(trajectories)[:rows] for trajectories, rows in planned])

    def _sample_batch(self, params: Params, batch: Batch) -> Float[Array, "B 8 3"]:
        keys = jax.vmap(lambda scene_id: jax.random.fold_in(self._key, scene_id))(batch["scene_id"])
        initial, steps = jax.vmap(lambda key: self._planner.draw_sampling_noise(key, 1))(keys)
        return self._planner.sample_with_noise(params, batch, initial[:, 0], jnp.moveaxis(steps[:, :, 0], 0, 1))


def planning_batches(scenes: Sequence[Scene], context: ContextSource, batch_size: int) -> list[tuple[Batch, int]]:
    """Inputs of scenes that are planned again and again, as `PlannerAgent.plan_batches` takes them."""
    rows = (
        planner_inputs(scene, context) | {"scene_id": np.uint32(zlib.crc32(scene.token.encode()))} for scene in scenes
    )
    return list(filled_batches(rows, batch_size))
