"""Attention among the tokens of one tile, as a Pallas kernel for TPU that takes projections as they are.

The vision tower has heads of 64 numbers and 1,025 tokens a tile: the general kernel wants heads apart, each filled up
to 128, and tokens filled up to 1,152, which costs more time in copies than attention itself. Here a block of 128
columns holds as many heads as fit, a tile's scores stay on the chip, and the backward pass computes them once for all
three gradients. Scores stand keys by queries, so that sums over keys go down columns, which is cheap.
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
_QUERY, _KEY, _VALUE = (slice(i * _LANES, (i + 1) * _LANES) for i in range(3))  # Columns of a block.
_VMEM_BYTES = 64 * 2**20
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
_ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))
_COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))


def suits(width: int, heads: int) -> bool:
    """Whether heads of this size fill blocks of 128 columns."""
    return width % _LANES == 0 and _LANES % (width // heads) == 0


def interleave(query: Float[Array, "W ..."], key: Float[Array, "W ..."], value: Float[Array, "W ..."]) -> Array:
    """Weights or biases of three projections as those of one, (3W, ...), in the order that the kernel takes.

    Args:
      query: Of queries; then 128 rows of it, of keys and of values follow each other.
      key: Of keys.
      value: Of values.
    """
    apart = [x.reshape(-1, 1, _LANES, *x.shape[1:]) for x in (query, key, value)]
    return jnp.concatenate(apart, axis=1).reshape(-1, *query.shape[1:])


def attend_within_tiles(
    projected: Float[Array, "n T 3W"], bias: Float[Array, "3W"], *, heads: int, tokens: int, interpret: bool = False
) -> Float[Array, "n T W"]:
    """Every token of a tile attends to the tile's real tokens; scores are scaled by head size ** -0.5.

    Args:
      projected: Queries, keys and values as `interleave` orders them, heads side by side; T is a multiple of `ROWS`.
      bias: What is still to be added to them; its gradient is summed in the kernel, which is why it takes it.
      heads: Of size W / heads, see `suits`.
      tokens: Real ones of a tile, which come first. What the others get is of no meaning.
      interpret: Runs the kernel in Pallas's interpreter, which works (slowly) anywhere.

    Raises:
      ValueError: The sizes do not suit the kernel.
    """
    count, rows, width = projected.shape
    if width % 3 or not suits(width // 3, heads) or rows % ROWS or not 0 < tokens <= rows:
        raise ValueError(
            f"{tokens} of {rows} tokens with {heads} heads on {width} columns do not suit the kernel; tokens come in "
            f"multiples of {ROWS}, columns in threes of {_LANES}, whole heads within {_LANES}."
        )
    run = functools.partial(_attend, heads, tokens, interpret)
    axes = partition.mesh_axes()
    if axes:
        own = PartitionSpec(partition.row_axes(count) or None)
        specs = (own, PartitionSpec())
        run = jax.shard_map(run, in_specs=specs, out_specs=own, axis_names=frozenset(axes), check_vma=False)
    return run(projected, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(heads: int, tokens: int, interpret: bool, projected: Array, bias: Array) -> Array:
    return _attend_forward(heads, tokens, interpret, projected, bias)[0]


def _attend_forward(
    heads: int, tokens: int, interpret: bool, projected: Array, bias: Array
) -> tuple[Array, tuple[Array, ...]]:
    sizes = _Sizes(projected, heads)
    out, totals = pl.pallas_call(
        functools.partial(_forward_kernel, size=sizes.head, tokens=tokens),
        out_shape=[jax.ShapeDtypeStruct((*projected.shape[:2], sizes.width), projected.dtype), sizes.totals],
        in_specs=[_block(sizes.rows, 3), _bias_block],
        out_specs=[_block(sizes.rows, 1), sizes.totals_block],
        name="tile_attention_forward",
        **sizes.settings(products=2, interpret=interpret),
    )(projected, bias[None])
    return out, (projected, bias, out, totals)


def _attend_backward(
    heads: int, tokens: int, interpret: bool, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array]:
    projected, bias, out, totals = kept
    sizes = _Sizes(projected, heads)
    across = pltpu.VMEM((_LANES, sizes.rows), jnp.float32)
    of_projected, of_bias = pl.pallas_call(
        functools.partial(_backward_kernel, size=sizes.head, tokens=tokens),
        out_shape=[
            jax.ShapeDtypeStruct(projected.shape, projected.dtype),
            jax.ShapeDtypeStruct((sizes.count, 8, projected.shape[-1]), jnp.float32),
        ],
        in_specs=[_block(sizes.rows, 3), _bias_block, _block(sizes.rows, 1), sizes.totals_block, _block(sizes.rows, 1)],
        out_specs=[_block(sizes.rows, 3), _block(8, 3)],
        scratch_shapes=[across, across],
        name="tile_attention_backward",
        **sizes.settings(products=5, interpret=interpret),
    )(projected, bias[None], out, totals, gradient)
    return of_projected, of_bias[:, 0].sum(axis=0).astype(bias.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _block(rows: int, wide: int) -> pl.BlockSpec:
    """What a run of a kernel, one tile and one block of heads, sees of an operand with tiles in front."""
    return pl.BlockSpec((1, rows, wide * _LANES), lambda tile, block: (tile, 0, block))


_bias_block = pl.BlockSpec((1, 3 * _LANES), lambda tile, block: (0, block))


class _Sizes:
    def __init__(self, projected: Array, heads: int) -> None:
        self.count, self.rows, width = projected.shape
        self.heads, self.width, self.head = heads, width // 3, width // 3 // heads
        self.filled = sum(chunk.filled for chunk in _chunks(self.rows))
        of_block = _LANES // self.head
        self.totals = jax.ShapeDtypeStruct((self.count, self.width // _LANES, of_block, self.filled), jnp.float32)
        self.totals_block = pl.BlockSpec((1, 1, of_block, self.filled), lambda tile, block: (tile, block, 0, 0))

    def settings(self, *, products: int, interpret: bool) -> dict[str, Any]:
        scores = self.count * self.heads * self.rows * self.filled
        moved = self.count * self.rows * self.width * 2 * (4 if products == 2 else 8)  # In bfloat16.
        return {
            "grid": (self.count, self.width // _LANES),
            # As the chip computes them: a head takes the time of 128 columns.
            "cost_estimate": pl.CostEstimate(
                flops=2 * products * scores * _LANES, transcendentals=scores, bytes_accessed=moved
            ),
            "compiler_params": pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM_BYTES
            ),
            "interpret": interpret,
        }


def _forward_kernel(projected, bias, out, totals, *, size: int, tokens: int):
    keys, values = (_heads(_part(projected, bias, which), size) for which in (_KEY, _VALUE))
    for chunk in _chunks(out.shape[1]):
        queries = _queries(projected, bias, chunk, size)
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
    projected, bias, out, totals, gradient, of_projected, of_bias, key_sum, value_sum, *, size: int, tokens: int
):
    dtype = projected.dtype
    keys, values = (_heads(_part(projected, bias, which), size) for which in (_KEY, _VALUE))
    key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)
    query_sum = jnp.zeros((_LANES, 1), jnp.float32)
    for chunk in _chunks(out.shape[1]):
        queries = _queries(projected, bias, chunk, size)
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
        _write(of_projected, chunk, summed.T * size**-0.5)
    of_projected[0, :, _KEY] = key_sum[...].T.astype(dtype)
    of_projected[0, :, _VALUE] = value_sum[...].T.astype(dtype)
    sums = [query_sum * size**-0.5, *(x[...].sum(axis=1, keepdims=True) for x in (key_sum, value_sum))]
    of_bias[0] = jnp.concatenate([jnp.broadcast_to(x.T, (8, _LANES)) for x in sums], axis=1)


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


def _part(projected: Any, bias: Any, which: slice) -> Array:
    return (projected[0, :, which].astype(jnp.float32) + bias[:, which].astype(jnp.float32)).astype(projected.dtype)


def _queries(projected: Any, bias: Any, chunk: _Chunk, size: int) -> Array:
    rows = _rows(projected, chunk).astype(jnp.float32) + bias[:, _QUERY].astype(jnp.float32)
    return (rows.astype(projected.dtype).astype(jnp.float32) * size**-0.5).astype(projected.dtype)


def _heads(x: Array, size: int) -> list[Array]:
    """One array for each head of a block, the columns of others being 0: no column is ever moved."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    starts = range(0, _LANES, size)
    return [jnp.where((lane >= start) & (lane < start + size), x, jnp.zeros((), x.dtype)) for start in starts]


def _rows(block: Any, chunk: _Chunk) -> Array:
    """A chunk of rows, those beyond the last being 0; of a block's first 128 columns."""
    rows = block[0, chunk.start : chunk.start + chunk.size, _QUERY]
    if chunk.filled == chunk.size:
        return rows
    return jnp.concatenate([rows, jnp.zeros((chunk.filled - chunk.size, rows.shape[1]), rows.dtype)])


def _write(block: Any, chunk: _Chunk, rows: Array) -> None:
    block[0, chunk.start : chunk.start + chunk.size, _QUERY] = rows[: chunk.size].astype(block.dtype)


def _mask(scores: Float[Array, "T C"], tokens: int) -> Array:
    """Scores of keys that are no real tokens become too small to count."""
    if scores.shape[0] == tokens:
        return scores
    whole = tokens // 8 * 8  # Rows of float32 that are stored together: those before need no look.
    last = scores[whole:]
    row = whole + jax.lax.broadcasted_iota(jnp.int32, last.shape, 0)
    return jnp.concatenate([scores[:whole], jnp.where(row < tokens, last, _MASKED)])
