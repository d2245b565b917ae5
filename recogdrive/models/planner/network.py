"""The planner's torch module: what is computed once per scene, and what once per denoising step."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES
from recogdrive.models.planner.dit import DiT, Weights
from recogdrive.models.planner.encoders import MLP, ActionEncoder, AttentionEgoStatus, MLPEgoStatus

POSE_CHANNELS = 3
Encoding = dict[str, Tensor | list[Tensor]]
"""What depends on the scene only: `tokens` (B, T, D), `keys`, `key_scale` and `values` of the cross-attention blocks
(see `DiT.project_context`), `mean` (B, D), `history` (B, D), `ego` (B, D), and `bias` (B, T) under a mask."""


class PlannerNetwork(nn.Module):
    """Predicts the noise (or flow) of a trajectory, given the scene.

    Parameter names are the official checkpoint's. Source: upstream `ReCogDriveDiffusionPlanner`.
    """

    def __init__(
        self,
        context_width: int,
        heads: int,
        head_dim: int,
        layers: int,
        output_dim: int,
        hidden_dim: int,
        output_channels: int,
        ego_status: MLPEgoStatus | AttentionEgoStatus,
    ):
        super().__init__()
        dim = heads * head_dim
        self.model = DiT(heads, head_dim, layers, output_dim, positions=FUTURE_FRAMES)
        self.his_traj_encoder = MLP(HISTORY_FRAMES * POSE_CHANNELS, hidden_dim, dim)
        self.ego_status_encoder = ego_status.build(dim, hidden_dim)
        self.action_encoder = ActionEncoder(POSE_CHANNELS, dim)
        self.feature_encoder = nn.Linear(context_width, dim)
        self.fusion_projector = nn.Linear(3 * dim, dim)
        self.action_decoder = MLP(output_dim, hidden_dim, output_channels)
        self.position_embedding = nn.Embedding(FUTURE_FRAMES, dim)

    def encode(
        self,
        context: Float[Tensor, "B T V"],
        history: Float[Tensor, "B 12"],
        status: Float[Tensor, "B 8"],
        mask: Bool[Tensor, "B T"] | None = None,
        status_masked: Float[Tensor, "B M"] | None = None,
        values: bool = True,
        stacked: Weights | None = None,
    ) -> Encoding:
        """Computes everything that depends on the scene only.

        Args:
          context: Context tokens.
          history: Flattened history poses, oldest first.
          status: Ego status.
          mask: True where a token is real; None treats all as real, as the official planners were trained.
          status_masked: Hidden status entries (attention status encoder in training).
          values: Whether to project the values too; without them `denoise` pools tokens first (see `Attention`).
          stacked: Weights of the blocks, see `DiT.forward`.
        """
        dtype = self.feature_encoder.weight.dtype
        tokens = self.feature_encoder(context.to(dtype))
        status = status.to(dtype)
        ego = (
            self.ego_status_encoder(status) if status_masked is None else self.ego_status_encoder(status, status_masked)
        )
        encoding = {
            "tokens": tokens,
            "history": self.his_traj_encoder(history.to(dtype)),
            "ego": ego,
            **self.model.project_context(tokens, values, stacked),
        }
        if mask is None:
            encoding["mean"] = tokens.to(torch.float32).mean(1).to(dtype)
        else:
            real = mask.to(torch.float32)
            summed = (tokens.to(torch.float32) * real[:, :, None]).sum(1)
            encoding["mean"] = (summed / real.sum(1, keepdim=True)).to(dtype)
            encoding["bias"] = (1 - real) * torch.finfo(torch.float32).min
        return encoding

    def denoise(
        self,
        encoding: Encoding,
        x: Float[Tensor, "B S 8 3"],
        t: Int[Tensor, "B S"],
        stacked: Weights | None = None,
    ) -> Float[Tensor, "B S 8 O"]:
        """Predicts for S noisy trajectories of each scene, at their times `t`, in float32.

        `stacked` are the weights that `encode` had, see `DiT.forward`.
        """
        dtype = self.feature_encoder.weight.dtype
        action = self.action_encoder(x.to(dtype), t) + self.position_embedding.weight
        scene = torch.cat([encoding["history"], encoding["mean"]], dim=-1)
        scene = scene[:, None, None, :].expand(*action.shape[:-1], scene.shape[-1])
        fused = self.fusion_projector(torch.cat([scene, action], dim=-1))
        context = {k: encoding[k] for k in ("tokens", "keys", "key_scale", "values", "bias") if k in encoding}
        return self.action_decoder(self.model(fused, t, encoding["ego"], context, stacked)).to(torch.float32)
