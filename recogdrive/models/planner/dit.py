"""The diffusion transformer over the trajectory points, with the scene as cross-attention context.

Axis names in comments: B scenes, S samples a scene, Q trajectory points, T context tokens, D width, H heads,
C channels a head.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from recogdrive.models import bridge

RMS_EPS = 1e-6
ROTARY_BASE = 10000.0
TIME_CHANNELS = 256
SELF, CROSS = "self.", "cross."
"""What names of stacked weights begin with, see `stacking.py`."""

Weights = dict[str, Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back, then a learned weight. Source: upstream `RMSNorm`."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Normalises the last axis."""
        x32 = x.to(torch.float32)
        return (x32 * torch.rsqrt((x32 * x32).mean(-1, keepdim=True) + RMS_EPS)).to(x.dtype) * self.weight


def _rms_factor(keys: Float[Tensor, "B H C T"]) -> Float[Tensor, "B H T"]:
    """What `RMSNorm` multiplies each head's channels with, before its weight."""
    keys32 = keys.to(torch.float32)
    return torch.rsqrt((keys32 * keys32).mean(-2) + RMS_EPS)


class RotaryEmbedding(nn.Module):
    """Rotary position code in the half-split layout: channel i turns with channel i + C/2."""

    def __init__(self, head_dim: int, positions: int):
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        inv_freq = 1.0 / (ROTARY_BASE**exponents)
        angle = torch.outer(torch.arange(positions, dtype=torch.float32, device="cpu"), inv_freq)
        self.register_buffer("inv_freq", inv_freq)
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos()[:, None, :], persistent=False)
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin()[:, None, :], persistent=False)

    def forward(self, x: Float[Tensor, "B S Q H C"]) -> Float[Tensor, "B S Q H C"]:
        """Turns every head of position q by its angle."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return x * self.cos.to(x.dtype) + turned * self.sin.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys; holds the weights for both kinds of block."""

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        dim = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def _split(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n H C"]:
        return x.reshape(*x.shape[:-1], self.heads, self.head_dim)

    def project_context(
        self, weight: Float[Tensor, "D D"], bias: Float[Tensor, "D"], tokens: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B H C T"]:
        """Keys or values of the context tokens, by the weights of `to_k` or `to_v`.

        Channels come before tokens, so that attention reads rows along T.
        """
        batch, length, dim = tokens.shape
        weight = weight.expand(batch, dim, dim)  # one matrix product a scene, with nothing to transpose after
        projected = torch.bmm(weight, tokens.transpose(1, 2)) + bias[:, None]
        return projected.reshape(batch, self.heads, self.head_dim, length)

    def attend_to_itself(self, x: Float[Tensor, "B S Q D"], rotary: RotaryEmbedding) -> Float[Tensor, "B S Q D"]:
        """Self-attention over the trajectory points of each sample."""
        q = rotary(self.q_norm(self._split(self.to_q(x))))
        k = rotary(self.k_norm(self._split(self.to_k(x))))
        v = self._split(self.to_v(x))
        scores = torch.einsum("bsqhc,bskhc->bshqk", q, k) / math.sqrt(self.head_dim)
        weights = nn.functional.softmax(scores.to(torch.float32), dim=-1).to(x.dtype)
        return self.to_out[0](torch.einsum("bshqk,bskhc->bsqhc", weights, v).reshape(x.shape))

    def attend_to_context(
        self, x: Float[Tensor, "B S Q D"], context: dict[str, Tensor], rotary: RotaryEmbedding
    ) -> Float[Tensor, "B S Q D"]:
        """Cross-attention of all samples of a scene to its one set of keys and values.

        Only the queries are turned by the rotary code.

        Args:
          x: Modulated trajectory points.
          context: `keys` (B, H, C, T) before the norm, `key_scale` (B, H, T) the norm's factor, optional
            `bias` (B, T) added to the scores, and either `values` (B, H, C, T) or `tokens` (B, T, D).
          rotary: Position code.

        With `tokens` instead of `values` the weights pool the tokens first and the value projection acts on what they
        pooled: the same result (projection and pooling are both linear, weights sum to 1) for QH/D of the work, which
        pays off when keys and values serve a single evaluation, as in a training step.
        """
        batch, samples, points, _ = x.shape
        q = rotary(self.q_norm(self._split(self.to_q(x)))) * self.k_norm.weight
        q = q.reshape(batch, samples * points, self.heads, self.head_dim).transpose(1, 2)  # (B, H, SQ, C)
        scores = torch.matmul(q, context["keys"]).to(torch.float32)
        scores = scores * (context["key_scale"] / math.sqrt(self.head_dim))[:, :, None, :]
        if "bias" in context:
            scores = scores + context["bias"][:, None, None, :]
        weights = nn.functional.softmax(scores, dim=-1).to(x.dtype)
        if "values" in context:
            out = torch.matmul(context["values"], weights.transpose(-1, -2))  # (B, H, C, SQ)
            out = out.permute(0, 3, 1, 2)
        else:
            rows = weights.reshape(batch, -1, weights.shape[-1])
            pooled = torch.matmul(rows, context["tokens"]).reshape(batch, self.heads, samples * points, -1)
            out = torch.einsum("bhqd,hcd->bqhc", pooled, self.to_v.weight.reshape(self.heads, self.head_dim, -1))
            out = out + self.to_v.bias.reshape(self.heads, self.head_dim)
        return self.to_out[0](out.reshape(x.shape))


class SwiGLU(nn.Module):
    """Gated feed-forward without widening: w3(SiLU(a) * b), where (a, b) = w12(x)."""

    def __init__(self, dim: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * dim)
        self.w3 = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Acts on the last axis."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * value)


def modulate(x: Float[Tensor, "B S Q D"], shift: Tensor, scale: Tensor) -> Float[Tensor, "B S Q D"]:
    """Scales and shifts all points of a sample by its (B, S, D) modulation."""
    return x * (1 + scale[:, :, None]) + shift[:, :, None]


class Block(nn.Module):
    """Attention (over itself or over the context) and feed-forward, both modulated and gated by the conditioning."""

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        dim = heads * head_dim
        self.norm1 = RMSNorm(dim)
        self.attn = Attention(heads, head_dim)
        self.norm2 = RMSNorm(dim)
        self.ffn = SwiGLU(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(
        self,
        x: Float[Tensor, "B S Q D"],
        condition: Float[Tensor, "B S D"],
        rotary: RotaryEmbedding,
        context: dict[str, Tensor] | None,
    ) -> Float[Tensor, "B S Q D"]:
        """One residual block; `context` None means self-attention."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.adaLN_modulation(condition).chunk(6, dim=-1)
        h = modulate(self.norm1(x), shift_a, scale_a)
        attended = (
            self.attn.attend_to_itself(h, rotary)
            if context is None
            else self.attn.attend_to_context(h, context, rotary)
        )
        x = x + gate_a[:, :, None] * attended
        return x + gate_f[:, :, None] * self.ffn(modulate(self.norm2(x), shift_f, scale_f))


class TimestepEmbedder(nn.Module):
    """Two linears around a SiLU; its own module because of the official parameter names."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(TIME_CHANNELS, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, code: Float[Tensor, "*n 256"]) -> Float[Tensor, "*n D"]:
        """Maps the sinusoidal code to the planner's width."""
        return self.linear_2(nn.functional.silu(self.linear_1(code)))


class TimestepEncoder(nn.Module):
    """Diffusion time -> conditioning: [cos, sin] of 128 frequencies. The exponent's divisor is 127, not 128."""

    def __init__(self, dim: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(dim)
        half = TIME_CHANNELS // 2
        exponents = torch.arange(half, dtype=torch.float32, device="cpu") * (-math.log(10000.0) / (half - 1))
        self.register_buffer("frequencies", torch.exp(exponents), persistent=False)

    def forward(self, t: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Encodes times, one a sample."""
        angle = t[..., None].to(torch.float32) * self.frequencies
        code = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
        return self.timestep_embedder(code.to(self.timestep_embedder.linear_1.weight.dtype))


class FinalLayer(nn.Module):
    """Norm, modulation (shift first) and projection to the output width."""

    def __init__(self, dim: int, output_dim: int):
        super().__init__()
        self.norm_final = RMSNorm(dim)
        self.linear = nn.Linear(dim, output_dim)
        self.modulation_proj = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Float[Tensor, "B S Q D"], condition: Float[Tensor, "B S D"]) -> Float[Tensor, "B S Q O"]:
        """Projects every point."""
        shift, scale = self.modulation_proj(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Transformer blocks of alternating self- (even) and cross-attention (odd). Source: upstream `LightningDiT`."""

    def __init__(self, heads: int, head_dim: int, layers: int, output_dim: int, positions: int):
        super().__init__()
        dim = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.timestep_encoder = TimestepEncoder(dim)
        self.rotary_embedder = RotaryEmbedding(head_dim, positions)
        self.transformer_blocks = nn.ModuleList(Block(heads, head_dim) for _ in range(layers))
        self.final_layer = FinalLayer(dim, output_dim)

    def project_context(
        self, tokens: Float[Tensor, "B T D"], values: bool, stacked: Weights | None = None
    ) -> dict[str, list[Tensor] | Tensor]:
        """Keys (and values, if asked for) of every cross-attention block.

        Args:
          tokens: Context tokens in the planner's width.
          values: Whether to project the values too.
          stacked: See `forward`.

        Returns:
          One entry a cross-attention block, as lists, or with `stacked` as tensors with the blocks in front: `keys`
          (B, H, C, T) before their norm, `key_scale` (B, H, T), the factor that norm would apply (so that normalised
          keys are never written out), and with `values` also `values` (B, H, C, T).
        """
        linears = {"keys": "to_k", "values": "to_v"} if values else {"keys": "to_k"}
        attention = self.transformer_blocks[1].attn if len(self.transformer_blocks) > 1 else None

        def project(weights: Weights) -> dict[str, Tensor]:
            out = {
                name: attention.project_context(weights[f"{linear}.weight"], weights[f"{linear}.bias"], tokens)
                for name, linear in linears.items()
            }
            return out | {"key_scale": _rms_factor(out["keys"])}

        if stacked is not None:
            of_attention = _beginning_with(f"{CROSS}attn.", stacked)
            return bridge.scan(lambda carry, weights: (carry, project(weights)), (), of_attention)[1]
        found = [project(dict(block.attn.named_parameters())) for block in self.transformer_blocks[1::2]]
        return {name: [of_block[name] for of_block in found] for name in (*linears, "key_scale")}

    def forward(
        self,
        x: Float[Tensor, "B S Q D"],
        t: Int[Tensor, "B S"],
        ego: Float[Tensor, "B D"],
        context: dict[str, Tensor | list[Tensor]],
        stacked: Weights | None = None,
    ) -> Float[Tensor, "B S Q O"]:
        """Runs all blocks on S samples of each of B scenes.

        Args:
          x: Fused codes of the trajectory points.
          t: Diffusion times.
          ego: Ego status vector, part of the conditioning.
          context: As `project_context` returns it, plus `tokens` and optionally `bias` (see `Attention`).
          stacked: Weights of all pairs of a self- and a cross-attention block, see `stacking.py`, instead of the
            blocks' own. The pairs then are one scanned step: a program an eighth the size for 16 blocks, but one
            that copies a pair's weights, keys and values before it reads them.
        """
        condition = self.timestep_encoder(t) + ego[:, None]
        of_blocks = {name: context[name] for name in ("keys", "key_scale", "values") if name in context}
        of_all = {name: value for name, value in context.items() if name not in of_blocks}
        paired = 0
        if stacked is not None:
            x = self._scan_pairs(x, condition, of_blocks, of_all, stacked)
            paired = len(self.transformer_blocks) // 2 * 2
        for i, block in enumerate(self.transformer_blocks[paired:]):
            own = of_all | {name: value[i // 2] for name, value in of_blocks.items()} if i % 2 else None
            x = block(x, condition, self.rotary_embedder, own)
        return self.final_layer(x, condition)

    def _scan_pairs(
        self,
        x: Float[Tensor, "B S Q D"],
        condition: Float[Tensor, "B S D"],
        of_blocks: dict[str, Tensor],
        of_all: dict[str, Tensor],
        stacked: Weights,
    ) -> Float[Tensor, "B S Q D"]:
        """All pairs of blocks, by the module of the first pair; of the context, what is each block's and what all's."""
        self_attention, cross_attention = self.transformer_blocks[:2]

        def run(block: Block, weights: Weights, x: Tensor, context: dict[str, Tensor] | None) -> Tensor:
            return torch.func.functional_call(
                block, weights, (x, condition, self.rotary_embedder, context), strict=True
            )

        def pair(x: Tensor, inputs: tuple[Weights, dict[str, Tensor]]) -> tuple[Tensor, None]:
            weights, own = inputs
            x = run(self_attention, _beginning_with(SELF, weights), x, None)
            return run(cross_attention, _beginning_with(CROSS, weights), x, of_all | own), None

        return bridge.scan(pair, x, (stacked, of_blocks))[0]


def _beginning_with(prefix: str, weights: Weights) -> Weights:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
