"""Attention of the vision tower and the language model: one function that transformers' modules call, three ways.

Tokens carry segment ids: a token sees the tokens of its own segment only, and segment 0 is padding, which sees nothing
(its output is exactly 0) and is seen by nobody.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recogdrive.models import bridge, partition
from recogdrive.target import target_platform

Implementation = str
IMPLEMENTATIONS = ("fused", "plain", "splash")
"""`plain` writes the formula out; `fused` is the splash kernel on TPU and JAX's fused attention elsewhere; `splash` is
the kernel whatever the machine that compiles, for compiling ahead of time."""

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # Finite: a row without any key must not turn into NaN.
_LANES = 128  # The kernel's tiles: sequence and head must fill whole ones.
_BLOCKS = (512, 384, 256, 128)

Segments = Int[Array, "B T"]


def implementation_name(attention: Implementation) -> str:
    """The name under which transformers finds an implementation.

    Raises:
      ValueError: There is no such implementation.
    """
    if attention not in IMPLEMENTATIONS:
        raise ValueError(f"attention={attention!r} must be one of {', '.join(map(repr, IMPLEMENTATIONS))}.")
    return f"recogdrive_{attention}"


def attend(
    query: Float[Array, "B H T d"],
    key: Float[Array, "B K S d"],
    value: Float[Array, "B K S d"],
    query_segments: Segments | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    *,
    causal: bool,
    scale: float,
    attention: Implementation = "fused",
) -> Float[Array, "B H T d"]:
    """Scaled dot-product attention with H / K query heads to a key head; softmax in float32.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      query_segments: Segment of each query, 0 for padding; None where all belong together.
      key_segments: Segment of each key; None where they are those of the queries.
      causal: Whether query t sees no key behind position t.
      scale: Factor of the scores.
      attention: One of `IMPLEMENTATIONS`.
    """
    key_segments = query_segments if key_segments is None else key_segments
    if (
        by_kernel(attention) and query.shape[2] == key.shape[2]
    ):  # Decoding token by token is bound by memory, not by the scores.
        return splash(query, key, value, query_segments, causal=causal, scale=scale)
    formula = plain if attention == "plain" else fused
    return formula(query, key, value, query_segments, key_segments, causal=causal, scale=scale)


def by_kernel(attention: Implementation) -> bool:
    """Whether an implementation is a kernel for TPU on the devices in question."""
    return attention == "splash" or (attention == "fused" and target_platform() == "tpu")


def plain(
    query: Float[Array, "B H T d"],
    key: Float[Array, "B K S d"],
    value: Float[Array, "B K S d"],
    query_segments: Segments | None,
    key_segments: Int[Array, "B S"] | None,
    *,
    causal: bool,
    scale: float,
) -> Float[Array, "B H T d"]:
    """The formula with all scores in float32 and an explicit mask; see `attend`."""
    batch, _, tokens, width = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, tokens, width)  # B K G T d
    scores = jnp.einsum("bkgtd,bksd->bkgts", grouped, key, preferred_element_type=jnp.float32) * scale
    mask = _mask(query, key, query_segments, key_segments, causal)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bksd->bkgtd", weights, value, preferred_element_type=jnp.float32)
    return _without_padding(out.astype(value.dtype).reshape(query.shape), query_segments)


def fused(
    query: Float[Array, "B H T d"],
    key: Float[Array, "B K S d"],
    value: Float[Array, "B K S d"],
    query_segments: Segments | None,
    key_segments: Int[Array, "B S"] | None,
    *,
    causal: bool,
    scale: float,
) -> Float[Array, "B H T d"]:
    """The same through `jax.nn.dot_product_attention`, on GPUs by cuDNN where it can; see `attend`."""
    mask = _mask(query, key, query_segments, key_segments, causal)
    out = jax.nn.dot_product_attention(
        query.swapaxes(1, 2),
        key.swapaxes(1, 2),
        value.swapaxes(1, 2),
        mask=None if mask is None else mask[:, None],
        scale=scale,
        implementation="cudnn" if _suits_cudnn(query, key, has_mask=mask is not None) else None,
    )
    return _without_padding(out.swapaxes(1, 2), query_segments)


def _suits_cudnn(query: Array, key: Array, *, has_mask: bool) -> bool:
    """Whether cuDNN's flash attention takes these: else XLA computes all scores of a layer at once.

    Source: the conditions of jax 0.10.2, `check_is_flash_attention`.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    even = query.shape[2] % 2 == 0 and key.shape[2] % 2 == 0
    heads_fit = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    return target_platform() == "gpu" and half and heads_fit and (even or not has_mask)


def splash(
    query: Float[Array, "B H T d"],
    key: Float[Array, "B K T d"],
    value: Float[Array, "B K T d"],
    segments: Segments | None,
    *,
    causal: bool,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B H T d"]:
    """The same by the Pallas kernel for TPU, queries and keys being the same tokens; see `attend`.

    The compiler does not partition the kernel: under a mesh, rows and heads are split by hand, where they divide evenly
    and are not split already; else every device computes all of them.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      segments: Segment of each token, 0 for padding; None where all belong together.
      causal: Whether token t sees no token behind it.
      scale: Factor of the scores.
      interpret: Runs the kernel in Pallas's interpreter, which works (slowly) anywhere.
    """
    if segments is None:
        segments = jnp.ones((query.shape[0], query.shape[2]), jnp.int32)
    run = functools.partial(_splash_rows, causal=causal, scale=scale, interpret=interpret)
    axes = partition.mesh_axes()
    if axes:
        rows = partition.row_axes(query.shape[0]) or None
        heads = partition.MODEL_AXIS if key.shape[1] % axes.get(partition.MODEL_AXIS, key.shape[1] + 1) == 0 else None
        by_head = PartitionSpec(rows, heads)
        specs = (by_head, by_head, by_head, PartitionSpec(rows))
        run = jax.shard_map(run, in_specs=specs, out_specs=by_head, axis_names=frozenset(axes), check_vma=False)
    return run(query, key, value, segments)


def _splash_rows(
    query: Float[Array, "B H T d"],
    key: Float[Array, "B K T d"],
    value: Float[Array, "B K T d"],
    segments: Segments,
    *,
    causal: bool,
    scale: float,
    interpret: bool,
) -> Float[Array, "B H T d"]:
    batch, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    after, wider = -tokens % _LANES, -width % _LANES
    padding = ((0, 0), (0, 0), (0, after), (0, wider))
    query, key, value = (jnp.pad(x, padding) for x in ((query * scale).astype(query.dtype), key, value))
    segments = jnp.pad(segments, ((0, 0), (0, after)))
    padded = tokens + after

    block = next(size for size in _BLOCKS if padded % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = splash_attention.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block))
    shape = (padded, padded)
    mask = splash_attention.CausalMask(shape) if causal else splash_attention.FullMask(shape)
    with jax.ensure_compile_time_eval():  # Its tables are constants, also where a layer is traced inside a scan.
        kernel = splash_attention.make_splash_mqa_single_device(
            splash_attention.MultiHeadMask([mask] * groups), block_sizes=sizes, interpret=interpret
        )
    grouped = query.reshape(batch, -1, groups, *query.shape[2:])  # B K G T d
    per_row = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(per_row)(grouped, key, value, splash_attention.SegmentIds(segments, segments))
    out = out.reshape(query.shape)[:, :, :tokens, :width].astype(value.dtype)
    return _without_padding(out, segments[:, :tokens])


def _mask(
    query: Array, key: Array, query_segments: Array | None, key_segments: Array | None, causal: bool
) -> Array | None:
    """(B or 1, T, S) True where a query sees a key; None where it sees all."""
    mask = None
    if causal:
        mask = (jnp.arange(query.shape[2])[:, None] >= jnp.arange(key.shape[2]))[None]
    if query_segments is not None and key_segments is not None:
        # Padding sees its like here, so that no softmax is empty; its output is cleared afterwards.
        same = query_segments[:, :, None] == key_segments[:, None, :]
        mask = same if mask is None else mask & same
    return mask


def _without_padding(out: Float[Array, "B H T d"], query_segments: Segments | None) -> Float[Array, "B H T d"]:
    if query_segments is None:
        return out
    return jnp.where((query_segments > 0)[:, None, :, None], out, jnp.zeros((), out.dtype))


def _from_transformers(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    attention: Implementation,
    segment_ids: torch.Tensor | None = None,
    key_segment_ids: torch.Tensor | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface to `attend`: heads second in, tokens second out."""
    if attention_mask is not None:
        raise ValueError("attention_mask is not looked at; give segment_ids instead.")
    run = functools.partial(
        # Keys of their own come from a cache, in which all written ones are earlier ones.
        attend,
        causal=module.is_causal and key_segment_ids is None,
        scale=scaling,
        attention=attention,
    )
    out = bridge.call_jax(run, query, key, value, segment_ids, key_segment_ids)
    return out.transpose(1, 2), None


for _attention in IMPLEMENTATIONS:
    ALL_ATTENTION_FUNCTIONS.register(
        implementation_name(_attention), functools.partial(_from_transformers, attention=_attention)
    )
