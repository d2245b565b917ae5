"""Low-rank adapters on the linear layers of the language model and the vision tower."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gin
import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array, Key
from torch import nn

from recogdrive.models import bridge, partition

LANGUAGE_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VISION_LINEARS = ("q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2")
"""Names of the linear layers that carry an adapter, in a decoder layer and in a vision layer."""

LORA_A, LORA_B = ".lora_a", ".lora_b"
"""Ends of the names of an adapter's parameters."""

_dropout_key: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("dropout_key", default=None)


@gin.register
@dataclass(frozen=True)
class Lora:
    """Which layers carry adapters, and of what size: y = W x + b + alpha / rank * B A dropout(x).

    A layer's adapter is two more parameters beside its weight, `lora_a` (rank, in) and `lora_b` (out, rank). Queries,
    keys and values of the tower carry one adapter each. Upstream's tower has one linear layer for the three, hence a
    shared A; three copies of its A express the same adapter here, and the merged weights go back into its layout.

    Attributes:
      rank: Rows of A.
      alpha: Scale times rank; None is twice the rank.
      dropout: Probability with which an input of A is left out in training.
      part: "llm", "tower" or "both".

    Source: upstream `wrap_llm_lora` and `wrap_backbone_lora`.
    """

    rank: int
    alpha: float | None = None
    dropout: float = 0.05
    part: str = "llm"

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"Lora.rank={self.rank!r} must be a positive whole number; without adapters, give none.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Lora.dropout={self.dropout} must be in [0, 1).")
        if self.part not in ("llm", "tower", "both"):
            raise ValueError(f"Lora.part={self.part!r} must be 'llm', 'tower' or 'both'.")

    @property
    def scale(self) -> float:
        """Factor of an adapter's output."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def on_language_model(self) -> bool:
        """Whether the language model carries adapters."""
        return self.part in ("llm", "both")

    @property
    def on_tower(self) -> bool:
        """Whether the vision tower does."""
        return self.part in ("tower", "both")


class LoraLinear(nn.Module):
    """A linear layer with an adapter, its parameters named as those of the layer it replaces plus two.

    Args:
      linear: The layer; its weight and bias are taken over.
      lora: Size of the adapter.
      index: Which linear layer of its block this is: layers of a block draw different dropout masks.
    """

    def __init__(self, linear: nn.Linear, lora: Lora, index: int):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        device = linear.weight.device
        self.lora_a = nn.Parameter(torch.empty(lora.rank, linear.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(linear.out_features, lora.rank, device=device))
        self.scale, self.rate, self.index = lora.scale, lora.dropout, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        out = nn.functional.linear(x, self.weight, self.bias)
        key = _dropout_key.get()
        if key is not None and self.rate > 0:
            x = bridge.call_jax(functools.partial(_dropout, jax.random.fold_in(key, self.index), self.rate), x)
        return out + nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b) * self.scale


def add_adapters(layer: nn.Module, names: tuple[str, ...], lora: Lora) -> None:
    """Replaces the linear layers of these names within `layer` by ones with an adapter."""
    found = [(path, part) for path, part in layer.named_modules() if path.rpartition(".")[2] in names]
    for index, (path, linear) in enumerate(found):
        parent, _, name = path.rpartition(".")
        setattr(layer.get_submodule(parent), name, LoraLinear(linear, lora, index))


@contextlib.contextmanager
def dropout_key(key: Key[Array, ""] | None) -> Iterator[None]:
    """Where adapters that run within find the key of their dropout; None switches it off."""
    token = _dropout_key.set(key)
    try:
        yield
    finally:
        _dropout_key.reset(token)


def is_adapter(name: str) -> bool:
    """Whether a parameter is part of an adapter."""
    return name.endswith((LORA_A, LORA_B))


def merge_lora(params: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """Weights without adapters that compute the same: W + alpha / rank * B A in place of each adapted W.

    Args:
      params: Parameters with adapters, in any layout that keeps `lora_a` and `lora_b` beside `weight`.
      lora: The adapters' size.

    Returns:
      The parameters without the adapters, in the weights' dtype.

    Raises:
      ValueError: An adapter lacks its other half or its weight.
    """
    merged = {name: value for name, value in params.items() if not is_adapter(name)}
    for linear in sorted({name.removesuffix(LORA_A).removesuffix(LORA_B) for name in params if is_adapter(name)}):
        missing = [end for end in (".weight", LORA_A, LORA_B) if linear + end not in params]
        if missing:
            raise ValueError(f"the adapter of {linear} cannot be merged without {', '.join(missing)}.")
        weight, a, b = (params[linear + end] for end in (".weight", LORA_A, LORA_B))
        with jax.default_matmul_precision("highest"):
            change = lora.scale * jnp.matmul(jnp.asarray(b, jnp.float32), jnp.asarray(a, jnp.float32))
        merged[f"{linear}.weight"] = (jnp.asarray(weight, jnp.float32) + change).astype(weight.dtype)
    return merged


def _dropout(key: Key[Array, ""], rate: float, x: Array) -> Array:
    # A key a row: what a row draws depends neither on the number of devices nor on which of them has it.
    numbers = partition.first_row(x.shape[0]) + jnp.arange(x.shape[0])
    kept = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x.shape[1:]))(numbers)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
