"""How the arrays of a model lie on the devices of a mesh: what a weight's dimensions are, which of them are split.

A training step is traced under its mesh (`jax.sharding.use_abstract_mesh`). Where there is none, or one device, nothing
here does anything, so that a model is written once.
"""

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

DATA_AXIS = "data"
"""Mesh axis that rows of a batch are split over, weights being copied along it."""

WEIGHT_AXIS = "fsdp"
"""Mesh axis that both rows of a batch and weights are split over; a layer's weights are gathered while it computes."""

MODEL_AXIS = "model"
"""Mesh axis that heads and hidden units of the language model are split over: tensor parallelism."""

ROW_AXES = (DATA_AXIS, WEIGHT_AXIS)

DIMENSIONS: tuple[tuple[str, str], ...] = (
    # The language model. Linear layers are (out, in), as torch has them; `layer` is the leading axis of a stack.
    ("language_model.layers.*.self_attn.[qkv]_proj.weight", "layer heads width"),
    ("language_model.layers.*.self_attn.[qkv]_proj.bias", "layer heads"),
    ("language_model.layers.*.self_attn.o_proj.weight", "layer width heads"),
    ("language_model.layers.*.mlp.gate_proj.weight", "layer hidden width"),
    ("language_model.layers.*.mlp.up_proj.weight", "layer hidden width"),
    ("language_model.layers.*.mlp.down_proj.weight", "layer late hidden"),
    ("language_model.layers.*.lora_a", "layer small width"),
    ("language_model.layers.*.lora_b", "layer width small"),
    ("language_model.layers.*", "layer small"),  # Norms.
    ("language_model.norm.weight", "small"),
    ("language_model.embed_tokens.weight", "small width"),
    ("lm_head.weight", "width width"),
    # The vision tower and the projector: too small for tensor parallelism.
    ("vision_tower.encoder.layer.*.attention.[qkv]_proj.weight", "layer width width"),
    ("vision_tower.encoder.layer.*.attention.projection_layer.weight", "layer width width"),
    ("vision_tower.encoder.layer.*.mlp.fc?.weight", "layer width width"),
    ("vision_tower.encoder.layer.*.lora_a", "layer small width"),
    ("vision_tower.encoder.layer.*.lora_b", "layer width small"),
    ("vision_tower.encoder.layer.*", "layer small"),  # Norms, biases, layer scale.
    ("vision_tower.embeddings.patch_embeddings.projection.weight", "width small small small"),
    ("vision_tower.embeddings.patch_embeddings.projection.bias", "small"),
    ("vision_tower.embeddings.*", "small small width"),
    ("multi_modal_projector.linear_?.weight", "width width"),
    ("multi_modal_projector.*", "small"),
)
"""End of a name -> the parameter's dimensions; `*` is any text, that of a stack among it, and the first line that fits
counts.

`heads` and `hidden` are split along `MODEL_AXIS`. Along `WEIGHT_AXIS` the first dimension is that is not yet split,
`late` after all others, `layer` and `small` never. (The TPU compiler keeps down-projections transposed: of one split by
its first dimension it sums the whole gradient on every chip.) A parameter without a line, as all of the planner's, is
split by its longest even dimension.
"""

_SPLIT_BY_MODEL = ("heads", "hidden")
_WHOLE = ("layer", "small")
_SUBLANES = 8  # A TPU stores fewer rows than these as if they were as many.


def dimensions(name: str) -> tuple[str, ...] | None:
    """What the dimensions of a parameter are, by `DIMENSIONS`; None where no line fits."""
    for pattern, words in DIMENSIONS:
        if fnmatchcase(name, f"*{pattern}"):
            return tuple(words.split())
    return None


def weight_spec(name: str, shape: tuple[int, ...], axes: Mapping[str, int], min_size: int = 2**16) -> PartitionSpec:
    """Which mesh axes the dimensions of a weight lie on; one that does not divide evenly lies on none.

    Args:
      name: Of the parameter; prefixes of those it is stored under do not matter.
      shape: Of the whole tensor.
      axes: Mesh axis -> devices along it; absent ones are not used.
      min_size: Entries below which a tensor without a line in `DIMENSIONS` is copied.

    Raises:
      ValueError: The tensor has another number of dimensions than its line.
    """
    words = dimensions(name)
    if words is not None and len(words) != len(shape):
        raise ValueError(f"{name} is {shape}, but its dimensions are {' x '.join(words)}; correct DIMENSIONS.")
    spec: list[str | None] = [None] * len(shape)
    model, shards = axes.get(MODEL_AXIS, 1), axes.get(WEIGHT_AXIS, 1)
    if words is not None and model > 1:
        parted = [word in _SPLIT_BY_MODEL and n % model == 0 for word, n in zip(words, shape, strict=True)]
        spec = [MODEL_AXIS if yes else None for yes in parted]
    if shards > 1 and (words is not None or math.prod(shape) >= min_size):
        free = [i for i, n in enumerate(shape) if n % shards == 0 and spec[i] is None]
        if words is not None:
            free = sorted((i for i in free if words[i] not in _WHOLE), key=lambda i: (words[i] == "late", i))
        roomy = [] if words is None else [i for i in free if shape[i] // shards >= _SUBLANES]
        if free:
            spec[roomy[0] if roomy else max(free, key=lambda i: shape[i])] = WEIGHT_AXIS
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def mesh_axes() -> dict[str, int]:
    """Axis -> devices of the mesh that the program is traced under, those that are split by hand left out."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: size for name, size in mesh.shape.items() if size > 1 and name not in mesh.manual_axes}


def row_axes(rows: int) -> tuple[str, ...]:
    """Mesh axes over which so many rows can be split now; none where they do not divide evenly."""
    axes = {name: size for name, size in mesh_axes().items() if name in ROW_AXES}
    return tuple(axes) if axes and rows % math.prod(axes.values()) == 0 else ()


def own_rows(
    function: Callable[..., Any], rows: int, specs: tuple[Any, ...], out_specs: Any = None
) -> Callable[..., Any]:
    """Runs a function on each device for its own rows, its collectives being those it writes itself.

    Args:
      function: Takes and returns pytrees of arrays.
      rows: Of the whole batch.
      specs: For each argument None, for rows in front, or a pytree of `PartitionSpec`.
      out_specs: The same of the result.
    """
    axes = row_axes(rows)
    if not axes:
        return function
    split = PartitionSpec(axes)
    return jax.shard_map(
        function,
        in_specs=tuple(split if spec is None else spec for spec in specs),
        out_specs=split if out_specs is None else tuple(split if spec is None else spec for spec in out_specs),
        axis_names=frozenset(axes),
        check_vma=False,
    )


def by_hand() -> dict[str, int]:
    """Axis -> devices along which rows are split by hand here: within a function of `own_rows`."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: mesh.shape[name] for name in ROW_AXES if name in mesh.manual_axes}


def first_row(rows: int) -> Array | int:
    """Number, in the whole batch, of the first of the `rows` that this device has."""
    axes = by_hand()
    return jax.lax.axis_index(tuple(axes)) * rows if axes else 0


def gather_weight(weight: Array, spec: PartitionSpec) -> Array:
    """The whole of a weight that is split along `WEIGHT_AXIS`; its gradient is summed over devices and split again."""
    if WEIGHT_AXIS not in spec:
        return weight
    return jax.lax.all_gather(weight, WEIGHT_AXIS, axis=tuple(spec).index(WEIGHT_AXIS), tiled=True)


def whole(weights: PyTree[Array]) -> PyTree[Array]:
    """Weights gathered once, wherever they are kept, so that nothing of the model is computed in parts.

    For models that are small beside their activations: left alone, the compiler exchanges activations in every layer.
    """
    if not mesh_axes():
        return weights
    return jax.tree.map(lambda weight: jax.lax.with_sharding_constraint(weight, PartitionSpec()), weights)


def sum_over_rows(gradient: Array, *, parted: bool) -> Array:
    """A weight's gradient of all rows from that of this device's.

    Args:
      gradient: Of the whole weight; where `parted`, of this device's part, for the rows of all that have other parts.
      parted: Whether the weight is split along `WEIGHT_AXIS`.
    """
    axes = tuple(axis for axis in by_hand() if not (parted and axis == WEIGHT_AXIS))
    return jax.lax.psum(gradient, axes) if axes else gradient


def look_up(table: Array, ids: Array, spec: PartitionSpec, dtype: DTypeLike) -> Array:
    """Rows of an embedding table whose width is split along `WEIGHT_AXIS`, without the whole table.

    Each device looks up its part of the width for the rows of all devices that have others; they exchange parts.

    Args:
      table: (V, D).
      ids: (B, T) of rows of the table; those beyond it are the nearest there are.
      spec: Of the table.
      dtype: Of the result; the table's gradient is summed in its own.
    """

    def take(table: Array, ids: Array) -> Array:
        return jnp.take(table, ids, axis=0, mode="clip").astype(dtype)

    def exchange(table: Array, ids: Array) -> Array:
        parts = take(table, jax.lax.all_gather(ids, WEIGHT_AXIS, axis=0, tiled=True))
        return jax.lax.all_to_all(parts, WEIGHT_AXIS, split_axis=0, concat_axis=2, tiled=True)

    if tuple(spec) != (None, WEIGHT_AXIS) or WEIGHT_AXIS not in row_axes(ids.shape[0]):
        return take(table, ids)
    return own_rows(exchange, ids.shape[0], (spec, None))(table, ids)


def by_hand_only(spec: PartitionSpec) -> PartitionSpec:
    """A placement without the axes that the compiler splits by itself."""
    return PartitionSpec(*(axis if axis == WEIGHT_AXIS else None for axis in spec))


def constrain_rows(tree: PyTree[Array]) -> PyTree[Array]:
    """Has rows, in front, lie along the mesh axes for rows where they divide evenly."""

    def constrained(value: Array) -> Array:
        axes = row_axes(value.shape[0])
        return jax.lax.with_sharding_constraint(value, PartitionSpec(axes)) if axes else value

    return jax.tree.map(constrained, tree)
