"""A device's part of the vocabulary, and what devices tell each other so that each works with a part only.

Where weights are split over devices, every device computes the logits of its own tokens of the vocabulary for the rows
of all devices, instead of gathering the whole head for its own rows: hidden states are far smaller than the head and
its gradient.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from recogdrive.models import partition

_LANES = 128  # A TPU computes as many columns at once; parts of the vocabulary fill whole ones.
_NO_TOKEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # Logit of the filling: finite, so that differences are.


def split(head: Float[Array, "V D"], rows: int) -> tuple[Float[Array, "W D"], PartitionSpec]:
    """The head filled up so that its tokens divide over the devices that weights are split over.

    Args:
      head: The output head.
      rows: Of the batch; where they do not divide over devices, nothing is split.

    Returns:
      The filled head, and how it is to be split.
    """
    if partition.WEIGHT_AXIS not in partition.row_axes(rows):
        return head, PartitionSpec()
    unit = partition.mesh_axes()[partition.WEIGHT_AXIS] * _LANES
    filled = math.ceil(head.shape[0] / unit) * unit
    return jnp.pad(head, ((0, filled - head.shape[0]), (0, 0))), PartitionSpec(partition.WEIGHT_AXIS)


class VocabularyPart:
    """The tokens of the vocabulary that this device computes logits of; all of them where nothing is split.

    Args:
      size: Tokens of the vocabulary.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._axis = partition.WEIGHT_AXIS if partition.WEIGHT_AXIS in partition.by_hand() else None

    @property
    def is_split(self) -> bool:
        """Whether other devices have other tokens."""
        return self._axis is not None

    def of_all_rows(self, own: Array) -> Array:
        """Rows of all devices that share the vocabulary, from this device's."""
        return own if self._axis is None else jax.lax.all_gather(own, self._axis, axis=0, tiled=True)

    def own_rows(self, of_all: Array, rows: int) -> Array:
        """This device's rows among those of all."""
        if self._axis is None:
            return of_all
        return jax.lax.dynamic_slice_in_dim(of_all, jax.lax.axis_index(self._axis) * rows, rows, axis=0)

    def sum_to_own_rows(self, of_all: Array) -> Array:
        """The sum over devices of what each has for all rows; of this device's rows."""
        if self._axis is None:
            return of_all
        return jax.lax.psum_scatter(of_all, self._axis, scatter_dimension=0, tiled=True)

    def sum(self, value: Array) -> Array:
        """Sum over the parts of the vocabulary."""
        return value if self._axis is None else jax.lax.psum(value, self._axis)

    def max(self, value: Array) -> Array:
        """Largest value over the parts of the vocabulary."""
        return value if self._axis is None else jax.lax.pmax(value, self._axis)

    def masked(self, logits: Float[Array, "... W"]) -> Float[Array, "... W"]:
        """Logits in which what fills the vocabulary up is no token."""
        if self._axis is None:
            return logits
        tokens = self._first(logits.shape[-1]) + jnp.arange(logits.shape[-1])
        return jnp.where(tokens < self._size, logits, _NO_TOKEN)

    def find(self, labels: Int[Array, "..."], width: int) -> tuple[Int[Array, "..."], Bool[Array, "..."]]:
        """Place of tokens within this device's `width`, and whether they are there; 0 where they are not."""
        place = labels - self._first(width)
        here = (place >= 0) & (place < width)
        return jnp.where(here, place, 0), here

    def likeliest(self, logits: Float[Array, "... W"], largest: Float[Array, "..."]) -> Int[Array, "..."]:
        """The token with the largest logit, the first of equals."""
        own = jnp.argmax(logits, axis=-1) + self._first(logits.shape[-1])
        if self._axis is None:
            return own
        return jax.lax.pmin(jnp.where(logits.max(axis=-1) == largest, own, self._size), self._axis)

    def _first(self, width: int) -> Array | int:
        return 0 if self._axis is None else jax.lax.axis_index(self._axis) * width
