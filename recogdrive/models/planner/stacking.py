"""Weights of the transformer's blocks, those of one kind in one array, so that blocks can be scanned.

Blocks come in pairs of self- and cross-attention. Stacked weights stay in the dict of parameters, under names of their
own, so that they pass through gradients and casts like the others.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from recogdrive.models.bridge import Params
from recogdrive.models.planner.dit import CROSS, SELF

BLOCKS = "model.transformer_blocks."
"""What names of the blocks' parameters begin with."""
_STACKED = "stacked/"


def paired_blocks(layers: int) -> tuple[str, ...]:
    """Beginnings of the names of parameters in pairs; a last block without partner is in none."""
    return tuple(f"{BLOCKS}{i}." for i in range(layers // 2 * 2))


def stack_pairs(params: Params, layers: int) -> Params:
    """The parameters with the weights of pairs stacked, (P, ...) each.

    Args:
      params: All parameters of a planner, by their official names.
      layers: Blocks of its transformer.
    """
    paired = paired_blocks(layers)
    stacked = {name: weight for name, weight in params.items() if not name.startswith(paired)}
    for half, first in ((SELF, 0), (CROSS, 1)):
        prefix = f"{BLOCKS}{first}."
        for name in (n.removeprefix(prefix) for n in params if n.startswith(prefix)):
            of_blocks = [params[f"{BLOCKS}{i}.{name}"] for i in range(first, len(paired), 2)]
            stacked[f"{_STACKED}{half}{name}"] = jnp.stack(of_blocks)
    return stacked


def split_stacked(params: Mapping[str, jax.Array]) -> tuple[Params, Params]:
    """The parameters that are not stacked, and the stacked ones as `DiT.forward` takes them."""
    rest = {name: weight for name, weight in params.items() if not name.startswith(_STACKED)}
    return rest, {n.removeprefix(_STACKED): w for n, w in params.items() if n.startswith(_STACKED)}
