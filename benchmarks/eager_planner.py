"""The planner's torch module in eager PyTorch, cross-attention as upstream writes it: what benchmarks compare with."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from recogdrive.models.planner.dit import Attention, RotaryEmbedding
from recogdrive.models.planner.planner import DiffusionPlanner


def torch_module(planner: DiffusionPlanner, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """The planner's own network with these weights."""
    network = planner.network.to_empty(device="cpu")
    fresh = DiffusionPlanner(planner.context_width).network
    # to_empty leaves buffers without values too; the module's own constructor makes them.
    for name, buffer in fresh.named_buffers():
        network.get_buffer(name).copy_(buffer)
    network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    return network


def _no_projection(
    attention: Attention, weight: torch.Tensor, bias: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """In the place of keys and values made once a scene: `_attend` makes them in every call."""
    del weight, bias
    return tokens.new_zeros(1, attention.heads, attention.head_dim, 1)


def _attend(
    attention: Attention, x: torch.Tensor, context: dict[str, torch.Tensor], rotary: RotaryEmbedding
) -> torch.Tensor:
    """Projects keys and values of all tokens, normalises keys, fused attention."""
    tokens, split = context["tokens"], attention._split
    q = rotary(attention.q_norm(split(attention.to_q(x))))[:, 0].transpose(1, 2)
    k = attention.k_norm(split(attention.to_k(tokens))).transpose(1, 2)
    v = split(attention.to_v(tokens)).transpose(1, 2)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return attention.to_out[0](out.reshape(x.shape))


@contextlib.contextmanager
def reference_attention() -> Iterator[None]:
    """While entered, cross-attention of one sample a scene has upstream's form instead of the module's."""
    own = Attention.project_context, Attention.attend_to_context
    Attention.project_context, Attention.attend_to_context = _no_projection, _attend
    try:
        yield
    finally:
        Attention.project_context, Attention.attend_to_context = own
