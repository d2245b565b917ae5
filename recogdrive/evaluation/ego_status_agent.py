"""The trained ego-status MLP as a baseline."""

from pathlib import Path

import gin

from recogdrive.data.context import NoContext
from recogdrive.evaluation.planner_agent import PlannerAgent, trained_weights
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.training.checkpoint import CheckpointError


@gin.register
class EgoStatusMLPAgent(PlannerAgent):
    """Plans from speed, acceleration and command alone, with weights that were trained before.

    Args:
      weights: Run folder of `baseline_ego_status_mlp`, or a `.ckpt` of the official code or of an export.
      model: The network; the official one unless given.
      batch_size: Scenes planned at once.

    Raises:
      ValueError: There are no weights, they cannot be used, or they do not fit; names the path.

    Source: NAVSIM `EgoStatusMLPAgent`.
    """

    def __init__(self, weights: str | Path, *, model: EgoStatusMLP | None = None, batch_size: int = 64) -> None:
        model = EgoStatusMLP() if model is None else model
        try:
            params = trained_weights(model, Path(weights))
        except (ValueError, OSError, CheckpointError) as error:
            raise ValueError(f"No ego-status MLP can be read from {str(weights)!r}: {error}") from error
        super().__init__(model, params, NoContext(), batch_size=batch_size)
