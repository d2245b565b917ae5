"""Attention among the tokens of one tile, as a Pallas kernel for TPU that takes projections as they are.

The vision tower has heads of 64 numbers and 1,025 tokens a tile: the general kernel wants heads apart, each filled up
to 128, and tokens filled up to 1,152, which costs more time in copies than attention itself. Here a block of 128 columns
holds as many heads as fit, a tile's scores stay on the chip, and the backward pass computes them once for all three
gradients. Scores stand keys by queries, so that sums over keys go down columns, which is cheap.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from recogdrive.models import partition

ROWS = 16
"""Tokens of a tile are filled up to a multiple of this: the rows of bfloat16 that a TPU stores together."""

_LANES = 128  # Columns that a TPU stores together.
_CHUNK = 512  # Queries whose scores exist at a time, the last ones somewhat more; two widths of a matrix unit.
_VMEM_BYTES = 64 * 2**20
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
_ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))
_COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))

Projections = tuple[Float[Array, "n T W"], Float[Array, "n T W"], Float[Array, "n T W"]]
Biases = tuple[Float[Array, "W"], Float[Array, "W"], Float[Array, "W"]]


def suits(width: int, heads: int) -> bool:
    """Whether heads of this size fill blocks of 128 columns."""
    return width % _LANES == 0 and _LANES % (width // heads) == 0


def attend_within_tiles(
    projections: Projections, biases: Biases, *, heads: int, tokens: int, interpret: bool = False
) -> Float[Array, "n T W"]:
    """Every token of a tile attends to the tile's real tokens; scores are scaled by head size ** -0.5.

    Args:
      projections: Queries, keys and values, heads side by side; T is a multiple of `ROWS`.
      biases: What is still to be added to them; their gradients are summed in the kernel, which is why it takes them.
      heads: Of size W / heads, see `suits`.
      tokens: Real ones of a tile, which come first. What the others get is of no meaning.
      interpret: Runs the kernel in Pallas's interpreter, which works (slowly) anywhere.

    Raises:
      ValueError: The sizes do not suit the kernel.
    """
    query = projections[0]
    count, rows, width = query.shape
    if not suits(width, heads) or rows % ROWS or not 0 < tokens <= rows:
        raise ValueError(
            f"{tokens} of {rows} tokens with {heads} heads on {width} columns do not suit the kernel; tokens come in "
            f"multiples of {ROWS}, columns of {_LANES}, whole heads within {_LANES}."
        )
    run = functools.partial(_attend, heads, tokens, interpret)
    axes = partition.mesh_axes()
    if axes:
        own, whole = PartitionSpec(partition.row_axes(count) or None), PartitionSpec()
        specs = ((own,) * 3, (whole,) * 3)
        run = jax.shard_map(run, in_specs=specs, out_specs=own, axis_names=frozenset(axes), check_vma=False)
    return run(projections, biases)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(heads: int, tokens: int, interpret: bool, projections: Projections, biases: Biases) -> Array:
    return _attend_forward(heads, tokens, interpret, projections, biases)[0]


def _attend_forward(
    heads: int, tokens: int, interpret: bool, projections: Projections, biases: Biases
) -> tuple[Array, tuple]:
    query = projections[0]
    blocks, totals_shape = _blocks(query, heads)
    out, totals = pl.pallas_call(
        functools.partial(_forward_kernel, size=query.shape[-1] // heads, tokens=tokens),
        out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype), totals_shape],
        in_specs=[blocks["tile"]] * 3 + [blocks["bias"]] * 3,
        out_specs=[blocks["tile"], blocks["totals"]],
        name="tile_attention_forward",
        **_settings(query, heads, products=2, interpret=interpret),
    )(*projections, *(bias[None] for bias in biases))
    return out, (projections, biases, out, totals)


def _attend_backward(heads: int, tokens: int, interpret: bool, kept: tuple, gradient: Array) -> tuple:
    projections, biases, out, totals = kept
    query = projections[0]
    blocks, _ = _blocks(query, heads)
    count, _, width = query.shape
    *of_projections, of_biases = pl.pallas_call(
        functools.partial(_backward_kernel, size=width // heads, tokens=tokens),
        out_shape=[
            *[jax.ShapeDtypeStruct(query.shape, query.dtype)] * 3,
            jax.ShapeDtypeStruct((count, 8, width), jnp.float32),
        ],
        in_specs=[blocks["tile"]] * 3 + [blocks["bias"]] * 3 + [blocks["tile"], blocks["totals"], blocks["tile"]],
        out_specs=[blocks["tile"]] * 3 + [blocks["sums"]],
        scratch_shapes=[pltpu.VMEM((_LANES, query.shape[1]), jnp.float32)] * 2,
        name="tile_attention_backward",
        **_settings(query, heads, products=5, interpret=interpret),
    )(*projections, *(bias[None] for bias in biases), out, totals, gradient)
    summed = of_biases.sum(axis=0)
    return tuple(of_projections), tuple(summed[i].astype(bias.dtype) for i, bias in enumerate(biases))


_attend.defvjp(_attend_forward, _attend_backward)


def _blocks(query: Array, heads: int) -> tuple[dict[str, pl.BlockSpec], jax.ShapeDtypeStruct]:
    """What a run of a kernel, one tile and one block of columns, sees of each operand; and the shape of totals."""
    count, rows, width = query.shape
    of_block, filled = _LANES * heads // width, sum(chunk.filled for chunk in _chunks(rows))
    blocks = {
        "tile": pl.BlockSpec((1, rows, _LANES), lambda tile, block: (tile, 0, block)),
        "bias": pl.BlockSpec((1, _LANES), lambda tile, block: (0, block)),
        "sums": pl.BlockSpec((1, 8, _LANES), lambda tile, block: (tile, 0, block)),
        "totals": pl.BlockSpec((1, 1, of_block, filled), lambda tile, block: (tile, block, 0, 0)),
    }
    return blocks, jax.ShapeDtypeStruct((count, width // _LANES, of_block, filled), jnp.float32)


def _settings(query: Array, heads: int, *, products: int, interpret: bool) -> dict[str, Any]:
    count, rows, width = query.shape
    scores = count * heads * rows * sum(chunk.filled for chunk in _chunks(rows))
    return {
        "grid": (count, width // _LANES),
        # As the chip computes them: a head takes the time of 128 columns.
        "cost_estimate": pl.CostEstimate(
            flops=2 * products * scores * _LANES, transcendentals=scores, bytes_accessed=4 * query.size * 2
        ),
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM_BYTES
        ),
        "interpret": interpret,
    }


def _forward_kernel(query, key, value, query_bias, key_bias, value_bias, out, totals, *, size: int, tokens: int):
    rows = query.shape[1]
    keys, values = _heads(_biased(key[0], key_bias), size), _heads(_biased(value[0], value_bias), size)
    for chunk in _chunks(rows):
        queries = _queries(query, query_bias, chunk, size)
        scores = [_mask(_dot(own_keys, queries, _ROWS_BY_ROWS), tokens) for own_keys in keys]
        summed = None
        for head, (own_scores, own_values) in enumerate(zip(scores, values, strict=True)):
            largest = own_scores.max(axis=0, keepdims=True)
            weights = jnp.exp(own_scores - largest)
            total = weights.sum(axis=0, keepdims=True)
            own = _dot(own_values, weights.astype(own_values.dtype), _COLUMNS_BY_COLUMNS) / total
            summed = own if summed is None else summed + own
            totals[0, 0, head : head + 1, chunk.columns] = largest + jnp.log(total)
        _write(out, chunk, summed.T)


def _backward_kernel(
    query, key, value, query_bias, key_bias, value_bias, out, totals, gradient,
    of_query, of_key, of_value, of_biases, key_sum, value_sum,
    *, size: int, tokens: int,
):  # fmt: skip
    rows, dtype = query.shape[1], query.dtype
    keys, values = _heads(_biased(key[0], key_bias), size), _heads(_biased(value[0], value_bias), size)
    key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)
    query_sum = jnp.zeros((_LANES, 1), jnp.float32)
    for chunk in _chunks(rows):
        queries = _queries(query, query_bias, chunk, size)
        gradients = _rows(gradient, chunk)
        across = gradients.astype(jnp.float32).T  # Columns by queries, as what is summed over queries wants them.
        products = across * _rows(out, chunk).astype(jnp.float32).T
        queries_across = queries.astype(jnp.float32).T
        summed = None
        for head, (own_keys, own_values) in enumerate(zip(keys, values, strict=True)):
            columns = slice(head * size, (head + 1) * size)
            scores = _mask(_dot(own_keys, queries, _ROWS_BY_ROWS), tokens)
            weights = jnp.exp(scores - totals[0, 0, head : head + 1, chunk.columns])
            of_weights = _dot(own_values, gradients, _ROWS_BY_ROWS)
            expected = products[columns].sum(axis=0, keepdims=True)
            of_scores = (weights * (of_weights - expected)).astype(dtype)
            value_sum[columns] += _dot(across[columns].astype(dtype), weights.astype(dtype), _ROWS_BY_ROWS)
            key_sum[columns] += _dot(queries_across[columns].astype(dtype), of_scores, _ROWS_BY_ROWS)
            own = _dot(own_keys, of_scores, _COLUMNS_BY_COLUMNS)
            summed = own if summed is None else summed + own
        query_sum += summed.sum(axis=1, keepdims=True)
        _write(of_query, chunk, summed.T * size**-0.5)
    of_key[0], of_value[0] = key_sum[...].T.astype(dtype), value_sum[...].T.astype(dtype)
    sums = [query_sum * size**-0.5, *(x[...].sum(axis=1, keepdims=True) for x in (key_sum, value_sum))]
    filling = jnp.zeros((_LANES, 8 - len(sums)), jnp.float32)
    of_biases[0] = jnp.concatenate([*sums, filling], axis=1).T


@dataclass(frozen=True)
class _Chunk:
    """Some of a tile's queries: the first, how many, to how many they are filled up, and where their totals are."""

    start: int
    size: int
    filled: int
    columns: slice


def _chunks(rows: int) -> list[_Chunk]:
    starts = [*range(0, max(rows - _CHUNK, 1), _CHUNK)]
    found, column = [], 0
    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        filled = -(-(end - start) // _LANES) * _LANES
        found.append(_Chunk(start, end - start, filled, slice(column, column + filled)))
        column += filled
    return found


def _dot(left: Array, right: Array, dimensions: tuple) -> Array:
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _biased(x: Array, bias: Any) -> Array:
    return (x.astype(jnp.float32) + bias[...].astype(jnp.float32)).astype(x.dtype)


def _queries(query: Any, bias: Any, chunk: _Chunk, size: int) -> Array:
    return (_biased(_rows(query, chunk), bias).astype(jnp.float32) * size**-0.5).astype(query.dtype)


def _heads(x: Array, size: int) -> list[Array]:
    """One array for each head of a block, the columns of others being 0: no column is ever moved."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    starts = range(0, _LANES, size)
    return [jnp.where((lane >= start) & (lane < start + size), x, jnp.zeros((), x.dtype)) for start in starts]


def _rows(block: Any, chunk: _Chunk) -> Array:
    """A chunk of rows, those beyond the last being 0."""
    rows = block[0, chunk.start : chunk.start + chunk.size, :]
    if chunk.filled == chunk.size:
        return rows
    return jnp.concatenate([rows, jnp.zeros((chunk.filled - chunk.size, rows.shape[1]), rows.dtype)])


def _write(block: Any, chunk: _Chunk, rows: Array) -> None:
    block[0, chunk.start : chunk.start + chunk.size, :] = rows[: chunk.size].astype(block.dtype)


def _mask(scores: Float[Array, "T C"], tokens: int) -> Array:
    """Scores of keys that are no real tokens become too small to count."""
    if scores.shape[0] == tokens:
        return scores
    whole = tokens // 8 * 8  # Rows of float32 that are stored together: those before need no look.
    last = scores[whole:]
    row = whole + jax.lax.broadcasted_iota(jnp.int32, last.shape, 0)
    return jnp.concatenate([scores[:whole], jnp.where(row < tokens, last, _MASKED)])
