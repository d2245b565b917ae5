"""Initial planner weights drawn from a JAX key, distributed as torch initialises its layers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from torch import nn

from recogdrive.models.bridge import Params
from recogdrive.models.planner.dit import RMSNorm
from recogdrive.models.planner.encoders import AttentionStatusEncoder

_EMBEDDING_STD = 0.02
"""Of the position embedding and the attention status encoder's tokens. Source: upstream `normal_(std=0.02)`."""


class Distribution(NamedTuple):
    """How one tensor starts: `uniform` in [-scale, scale], `normal` of std `scale`, or the constant `scale`."""

    kind: str
    scale: float


def distributions(network: nn.Module) -> dict[str, Distribution]:
    """Initial distribution of every parameter of a planner network."""
    found: dict[str, Distribution] = {}
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            found[f"{path}.{name}" if path else name] = _distribution(path, module, name, tuple(parameter.shape))
    return found


def _distribution(path: str, module: nn.Module, name: str, shape: tuple[int, ...]) -> Distribution:
    match module:
        case nn.Linear() if "adaLN_modulation" in path or "modulation_proj" in path:
            return Distribution("constant", 0.0)
        case nn.Linear() if path.endswith("attn.out_proj") and name == "bias":
            return Distribution("constant", 0.0)
        case nn.Linear():
            return Distribution("uniform", 1 / math.sqrt(module.in_features))
        case nn.LayerNorm() | RMSNorm():
            return Distribution("constant", 1.0 if name == "weight" else 0.0)
        case nn.Embedding() | AttentionStatusEncoder():
            return Distribution("normal", _EMBEDDING_STD)
        case nn.MultiheadAttention() if name == "in_proj_weight":
            return Distribution("uniform", math.sqrt(6 / sum(shape)))  # Xavier
        case nn.MultiheadAttention():
            return Distribution("constant", 0.0)
    raise TypeError(f"no initial distribution for {name} of {type(module).__name__} at {path}")


def draw(network: nn.Module, key: Key[Array, ""]) -> Params:
    """Draws every parameter in float32; a pure function of the key and the network's structure."""
    rules = distributions(network)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}

    # One long draw a distribution, cut up: hundreds of small random programs would take seconds to compile.
    units = {}
    for number, (kind, sampler) in enumerate(_SAMPLERS.items()):
        length = sum(math.prod(shape) for name, shape in shapes.items() if rules[name].kind == kind)
        units[kind] = sampler(jax.random.fold_in(key, number), length)
    params, used = {}, dict.fromkeys(units, 0)
    for name, shape in shapes.items():
        kind, scale = rules[name]
        if kind == "constant":
            params[name] = jnp.full(shape, scale)
            continue
        start, used[kind] = used[kind], used[kind] + math.prod(shape)
        params[name] = units[kind][start : used[kind]].reshape(shape) * scale
    return params


_SAMPLERS = {
    "uniform": lambda key, length: jax.random.uniform(key, (length,), minval=-1.0, maxval=1.0),
    "normal": lambda key, length: jax.random.normal(key, (length,)),
}
