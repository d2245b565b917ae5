"""A layer of the vision tower: transformers' parameters, computed the way a TPU is quick at.

Three things differ from writing the formula out. Statistics of norms may be kept for the backward pass (they are few),
GELU goes through erf (by erfc two expansions are computed and one dropped), and the factors of layer scale are
multiplied into weights, so that the backward pass needs no branch's output to get their gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float
from torch import nn
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionLayer

from recogdrive.models import bridge
from recogdrive.models.vlm.lora import LoraLinear
from recogdrive.models.vlm.tile_attention import attend_within_tiles, interleave

STATISTICS = "norm_statistics"
"""Name of what norms may keep for the backward pass: two numbers a token."""


class LayerNorm(nn.LayerNorm):
    """Statistics in float32 whatever the input; torchax takes them in the input's own precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension."""
        return bridge.call_jax(normalize, x, self.weight, self.bias, self.eps)


class VisionLayer(InternVLVisionLayer):
    """transformers' vision layer with stochastic depth, which it lacks.

    Args:
      config: Sizes.
    """

    def __init__(self, config: InternVLVisionConfig):
        super().__init__(config)
        if config.hidden_act == "gelu":
            self.mlp.activation_fn = _Gelu()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_factor: torch.Tensor | None = None,
        mlp_factor: torch.Tensor | None = None,
        tokens: int | None = None,
    ) -> torch.Tensor:
        """Runs the layer.

        Args:
          hidden_states: (tiles, tokens, width).
          attention_factor: (tiles, 1, 1) factor of the attention branch; None is 1.
          mlp_factor: The same of the MLP branch.
          tokens: Real tokens of a tile, where they are filled up for `attend_within_tiles`.

        Source: upstream `InternVisionEncoderLayer`.
        """
        normed = self.layernorm_before(hidden_states)
        attention = self.attention
        if tokens is None:
            branch = self.lambda_1 * attention(normed)[0]
        else:
            branch = _scaled_linear(attention.projection_layer, self._attend(normed, tokens), self.lambda_1)
        hidden_states = hidden_states + (branch if attention_factor is None else branch * attention_factor)
        mlp = self.mlp
        activated = bridge.call_jax(computed_apart, mlp.activation_fn(mlp.fc1(self.layernorm_after(hidden_states))))
        branch = _scaled_linear(mlp.fc2, activated, self.lambda_2)
        return hidden_states + (branch if mlp_factor is None else branch * mlp_factor)

    def _attend(self, normed: torch.Tensor, tokens: int) -> torch.Tensor:
        attention = self.attention
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)

        def attend(projected: Array, bias: Array) -> Array:
            return attend_within_tiles(projected, bias, heads=attention.num_heads, tokens=tokens)

        if any(isinstance(linear, LoraLinear) or linear.bias is None for linear in linears):
            # Adapters make three products of their own; their sums are interleaved instead of the weights.
            columns = [linear(normed).transpose(0, -1) for linear in linears]
            projected = bridge.call_jax(interleave, *columns).transpose(0, -1)
            return bridge.call_jax(attend, projected, torch.zeros_like(projected[0, 0]))
        weight = bridge.call_jax(_interleave_apart, *(linear.weight for linear in linears))
        bias = bridge.call_jax(interleave, *(linear.bias for linear in linears))
        return bridge.call_jax(attend, nn.functional.linear(normed, weight), bias)


def _interleave_apart(*weights: Array) -> Array:
    # Else the product of the weight's gradient takes on the shape that comes after it, and transposes its operand.
    return gradient_apart(interleave(*weights))


class _Gelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return bridge.call_jax(gelu, x)


def _scaled_linear(linear: nn.Module, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` times a linear layer's output."""
    if isinstance(linear, LoraLinear):
        return factor * linear(x)
    bias = None if linear.bias is None else linear.bias * factor
    return nn.functional.linear(x, linear.weight * factor[:, None], bias)


@jax.custom_vjp
def computed_apart(x: Array) -> Array:
    """The same values, kept by the compiler from being computed inside of the product that uses them.

    A TPU's matrix units wait for an operand that is computed on the way in. The gradient passes freely.

    Args:
      x: Any array.
    """
    return jax.lax.optimization_barrier(x)


computed_apart.defvjp(lambda x: (computed_apart(x), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def gradient_apart(x: Array) -> Array:
    """The same values, whose gradient is computed before the two products that use it rather than within each.

    Args:
      x: Any array.
    """
    return x


gradient_apart.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, computed in float32.

    Args:
      x: Any array; the result has its dtype.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * np.float32(1 / np.sqrt(2 * np.pi))
    return ((gradient.astype(jnp.float32) * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def normalize(
    x: Float[Array, "... W"], weight: Float[Array, "W"], bias: Float[Array, "W"], epsilon: float
) -> Float[Array, "... W"]:
    """Layer norm over the last dimension, computed in float32.

    Args:
      x: What is normalised; the result has its dtype.
      weight: Factor of each column.
      bias: What is added to each.
      epsilon: Added to the variance.
    """
    return _normalize(epsilon, x, weight, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(epsilon: float, x: Array, weight: Array, bias: Array) -> Array:
    return _normalize_forward(epsilon, x, weight, bias)[0]


def _statistics(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Mean and reciprocal deviation, in one pass, which is exact enough around the first column."""
    first = x[..., :1].astype(jnp.float32)
    offset = x.astype(jnp.float32) - first
    mean = offset.mean(axis=-1)
    variance = jnp.maximum((offset * offset).mean(axis=-1) - mean * mean, 0)
    return checkpoint_name((first[..., 0] + mean, jax.lax.rsqrt(variance + epsilon)), STATISTICS)


def _normalize_forward(epsilon: float, x: Array, weight: Array, bias: Array) -> tuple[Array, tuple]:
    mean, scale = _statistics(x, epsilon)
    normed = (x.astype(jnp.float32) - mean[..., None]) * scale[..., None]
    out = normed * weight.astype(jnp.float32) + bias.astype(jnp.float32)
    return out.astype(x.dtype), (x, weight, bias, mean, scale)


def _normalize_backward(epsilon: float, kept: tuple, gradient: Array) -> tuple[Array, Array, Array]:
    del epsilon
    x, weight, bias, mean, scale = kept
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean[..., None]) * scale[..., None]
    weighted = gradient * weight.astype(jnp.float32)
    along = weighted.mean(axis=-1, keepdims=True) + normed * (weighted * normed).mean(axis=-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    of_weight, of_bias = (gradient * normed).sum(axis=rows), gradient.sum(axis=rows)
    of_x = (weighted - along) * scale[..., None]
    return of_x.astype(x.dtype), of_weight.astype(weight.dtype), of_bias.astype(bias.dtype)


_normalize.defvjp(_normalize_forward, _normalize_backward)
