"""Encoders of the planner's inputs: history, ego status and the noisy trajectory."""

import math

import gin
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

STATUS_CHANNELS = 8
"""Command one-hot (left, straight, right, unknown), velocity x y, acceleration x y."""

_MASKED_CHANNELS = 4
_ATTENTION_HEADS = 4


class MLP(nn.Module):
    """Linear, GELU (erf), LayerNorm over the hidden width, Linear.

    The norm follows the activation. Source: upstream `MLP` of the planner.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Maps the last axis from `input_dim` to `output_dim`."""
        return self.fc2(self.norm(nn.functional.gelu(self.fc1(x))))


class AttentionStatusEncoder(nn.Module):
    """One token a status entry, pooled by a learned query with 4-head attention.

    Source: upstream `StateAttentionEncoder` (unused by released models).
    """

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(1, dim) for _ in range(channels))
        self.attn = nn.MultiheadAttention(dim, _ATTENTION_HEADS, batch_first=True)
        self.pos_embed = nn.Parameter(torch.empty(1, channels, dim))
        self.query = nn.Parameter(torch.empty(1, 1, dim))

    def forward(self, status: Float[Tensor, "B C"], masked: Float[Tensor, "B M"] | None = None) -> Float[Tensor, "B D"]:
        """Encodes the status.

        Args:
          status: One row a scene.
          masked: 1 where one of the first M entries is hidden from the query, else 0; None hides nothing.
        """
        weight = torch.stack([linear.weight[:, 0] for linear in self.linears])  # (C, D)
        bias = torch.stack([linear.bias for linear in self.linears])
        tokens = status[:, :, None] * weight + bias + self.pos_embed
        batch, channels, dim = tokens.shape
        heads, head_dim = _ATTENTION_HEADS, dim // _ATTENTION_HEADS
        # nn.MultiheadAttention only holds the parameters (by their official names): its forward pass takes branches
        # that do not trace.
        w_q, w_k, w_v = (self.attn.in_proj_weight[i * dim : (i + 1) * dim] for i in range(3))
        b_q, b_k, b_v = (self.attn.in_proj_bias[i * dim : (i + 1) * dim] for i in range(3))
        q = nn.functional.linear(self.query[0, 0], w_q, b_q).reshape(heads, head_dim)
        k = nn.functional.linear(tokens, w_k, b_k).reshape(batch, channels, heads, head_dim)
        v = nn.functional.linear(tokens, w_v, b_v).reshape(batch, channels, heads, head_dim)
        scores = torch.einsum("hd,bchd->bhc", q, k) / math.sqrt(head_dim)
        if masked is not None:
            hidden = nn.functional.pad(masked, (0, channels - masked.shape[1]))
            scores = scores + (hidden * torch.finfo(torch.float32).min)[:, None, :].to(scores.dtype)
        pooled = torch.einsum("bhc,bchd->bhd", nn.functional.softmax(scores, dim=-1), v).reshape(batch, dim)
        return self.attn.out_proj(pooled)


class ActionEncoder(nn.Module):
    """Encodes a noisy trajectory together with its diffusion time.

    Source: upstream `ActionEncoder`; its time code is [sin, cos], the reverse of the DiT's.
    """

    def __init__(self, action_dim: int, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(action_dim, dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.fc3 = nn.Linear(dim, dim)
        half = dim // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * (-math.log(10000.0) / half))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Float[Tensor, "*n H A"], t: Int[Tensor, "*n"]) -> Float[Tensor, "*n H D"]:
        """Encodes trajectory points `x` at times `t` (one per trajectory)."""
        angle = t[..., None].to(torch.float32) * self.frequencies
        code = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1).to(x.dtype)
        code = code[..., None, :].expand(*x.shape[:-1], code.shape[-1])
        return self.fc3(nn.functional.silu(self.fc2(torch.cat([self.fc1(x), code], dim=-1))))


@gin.register
class MLPEgoStatus:
    """Ego status through an MLP, as in every released model."""

    masked_channels = 0
    mask_probability = 0.0

    def build(self, dim: int, hidden_dim: int) -> nn.Module:
        """Creates the torch module: (B, 8) -> (B, dim)."""
        return MLP(STATUS_CHANNELS, hidden_dim, dim)


@gin.register
class AttentionEgoStatus:
    """Ego status as tokens under attention; hides entries at random in training.

    Hidden are the first four entries, each with probability `mask_probability`. Those are the command and not the
    kinematics the option was meant for: a quirk kept for parity.
    """

    masked_channels = _MASKED_CHANNELS

    def __init__(self, mask_probability: float = 0.75):
        if not 0 <= mask_probability <= 1:
            raise ValueError(f"mask_probability={mask_probability} is not a probability; use a value in [0, 1]")
        self.mask_probability = mask_probability

    def build(self, dim: int, hidden_dim: int) -> nn.Module:
        """Creates the torch module: (B, 8) -> (B, dim); `hidden_dim` is not used."""
        if dim % _ATTENTION_HEADS:
            raise ValueError(f"planner width {dim} does not divide over {_ATTENTION_HEADS} attention heads")
        return AttentionStatusEncoder(STATUS_CHANNELS, dim)
