"""Initial weights of an InternVL, as transformers draws them."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from recogdrive.models.bridge import Params
from recogdrive.models.vlm.lora import LORA_A, LORA_B

_STD = 0.02
"""Of linear layers, convolution and embedding. Source: transformers' `PreTrainedModel._init_weights`."""
_LAYER_SCALE = 0.1
"""Source: transformers' `InternVLVisionConfig.layer_scale_init_value`."""
_LARGE = 1 << 24


def draw(shapes: Mapping[str, tuple[int, ...]], key: Key[Array, ""]) -> Params:
    """Draws every parameter in float32; pure and jittable.

    Linear layers, convolution and embeddings are N(0, 0.02); norms 1 and 0; layer scale 0.1; class token, position
    table and biases 0. Of adapters, B is 0 and A uniform within 1 / sqrt(in), peft's default.

    Args:
      shapes: Parameter name -> shape.
      key: Random key.
    """
    constants = {name: _constant(name) for name in shapes}
    sizes = {name: math.prod(shapes[name]) for name, value in constants.items() if value is None}
    # One long draw, cut up, for the many small tensors: a random program each would take seconds to compile.
    small = [name for name, size in sizes.items() if size < _LARGE]
    pool = jax.random.normal(key, (sum(sizes[name] for name in small),))
    start, params = 0, {}
    for index, (name, shape) in enumerate(shapes.items()):
        constant = constants[name]
        if constant is not None:
            params[name] = jnp.full(shape, constant)
            continue
        if name in small:
            normal = pool[start : start + sizes[name]].reshape(shape)
            start += sizes[name]
        else:
            normal = jax.random.normal(jax.random.fold_in(key, index), shape)
        params[name] = _uniform(normal, 1 / math.sqrt(shape[-1])) if name.endswith(LORA_A) else _STD * normal
    return params


def _uniform(normal: Array, bound: float) -> Array:
    """Uniform within the bound, from standard normal numbers."""
    return bound * jax.scipy.special.erf(normal / math.sqrt(2))


def _constant(name: str) -> float | None:
    """The value a parameter starts from; None where it is drawn."""
    module, _, last = name.rpartition(".")
    if name.endswith(LORA_B) or last in ("bias", "cls_token", "position_embeddings"):
        return 0.0
    if last in ("lambda_1", "lambda_2"):
        return _LAYER_SCALE
    return 1.0 if "norm" in module.rpartition(".")[2] else None
