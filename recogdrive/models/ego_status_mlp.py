"""The ego-status MLP: plans from the current speed, acceleration and command alone, blind to everything around."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float, Key
from torch import Tensor, nn

from recogdrive.data.types import FUTURE_FRAMES, Command
from recogdrive.models import bridge
from recogdrive.models.bridge import Params
from recogdrive.models.planner import initialization
from recogdrive.models.planner.encoders import STATUS_CHANNELS
from recogdrive.models.planner.network import POSE_CHANNELS
from recogdrive.models.planner.official_checkpoint import OfficialLayout, official_layout
from recogdrive.models.planner.planner import COORDINATES, Batch, ParameterRow

PREFIX = "agent."
"""Of the keys in official checkpoints. Source: NAVSIM `AgentLightningModule`."""


class EgoStatusNetwork(nn.Module):
    """Four linear layers with ReLU between them. Source: NAVSIM `EgoStatusMLPAgent`, whose parameter names these are.

    Args:
      hidden_dim: Width of the three hidden layers.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self._mlp = nn.Sequential(
            nn.Linear(STATUS_CHANNELS, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, FUTURE_FRAMES * POSE_CHANNELS),
        )

    def forward(self, feature: Float[Tensor, "B 8"]) -> Float[Tensor, "B 8 3"]:
        """Poses at 0.5 ... 4 s from a feature vector in this network's own order, see `ego_feature`."""
        return self._mlp(feature).reshape(-1, FUTURE_FRAMES, POSE_CHANNELS)


@gin.register
class EgoStatusMLP:
    """Plans a 4 s trajectory from the current ego status.

    Holds no weights: parameters are a flat dict under their official names (542,232 weights with the default width).

    Args:
      hidden_dim: Width of the hidden layers; official checkpoints have 512.

    Raises:
      ValueError: The width is not a positive whole number.

    Source: NAVSIM `EgoStatusMLPAgent`.
    """

    name = "ego_status_mlp"
    """What tables and reports call it."""
    context_width = 0
    """It reads no context tokens (see `NoContext`)."""

    def __init__(self, hidden_dim: int = 512) -> None:
        if not isinstance(hidden_dim, int) or hidden_dim < 1:
            raise ValueError(f"hidden_dim={hidden_dim!r} must be a positive integer")
        with torch.device("meta"):  # Weights live in JAX; the module only says what to compute with them.
            self.network = EgoStatusNetwork(hidden_dim).eval()
        self._apply = bridge.functional(self.network)

    def parameter_table(self) -> list[ParameterRow]:
        """Every trainable tensor; allocates nothing."""
        return [ParameterRow(name, tuple(p.shape), "float32", p.numel()) for name, p in self.network.named_parameters()]

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws initial weights from `key`, distributed as torch's defaults for linear layers."""
        return initialization.draw(self.network, key)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean absolute error over all entries in metres and radians; headings are compared as numbers, not wrapped.

        Args:
          params: Weights.
          batch: See docs/architecture.md; reads `status_feature` and `trajectory`.
          key: Without effect: nothing here is random.

        Returns:
          The loss and its parts, the mean absolute error of each coordinate.
        """
        driven = jnp.asarray(batch["trajectory"])
        errors = jnp.abs(self.plan(params, batch, key) - driven)
        return errors.mean(), {f"mae_{name}": errors[..., i].mean() for i, name in enumerate(COORDINATES)}

    def plan(self, params: Params, batch: Batch, keys: Key[Array, "..."]) -> Float[Array, "B 8 3"]:
        """One trajectory a scene: x, y in metres and heading in radians, scene frame; the keys are without effect."""
        del keys
        status = batch.get("status_feature")
        if status is None or np.ndim(status) != 2 or np.shape(status)[1] != STATUS_CHANNELS:
            found = "none" if status is None else np.shape(status)
            raise ValueError(f"batch['status_feature'] must be (B, {STATUS_CHANNELS}); found {found}")
        with jax.default_matmul_precision("highest"):  # float32 means float32, on accelerators too
            return self._apply(params, "forward", ego_feature(jnp.asarray(status)))


def ego_feature(status_feature: Float[Array, "*n 8"]) -> Float[Array, "*n 8"]:
    """Velocity x y, acceleration x y, command one-hot from a batch's status, which has the command first.

    Source: NAVSIM `EgoStatusFeatureBuilder`.
    """
    return jnp.concatenate([status_feature[..., len(Command) :], status_feature[..., : len(Command)]], axis=-1)


@official_layout.register
def _(model: EgoStatusMLP) -> OfficialLayout:
    return OfficialLayout(PREFIX, dict.fromkeys((row.name for row in model.parameter_table()), None))
