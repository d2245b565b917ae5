"""Constant matrices applied to signals, in a summation order that no batch size changes."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def apply_matrix(matrix: Float[np.ndarray, "M K"], signal: Float[Array, "*n K"]) -> Float[Array, "M *n"]:
    """Products of a constant matrix with vectors along the last axis; the result's first axis is the matrix's.

    A library's matrix product picks its order of summation by the size of the batch, so that a trajectory's score would
    depend in its last digits on what else is scored. Here entries are added up from first to last.
    """
    columns = jnp.asarray(np.ascontiguousarray(matrix.T), signal.dtype)
    values = jnp.moveaxis(signal, -1, 0)
    ones = (1,) * (signal.ndim - 1)

    def add(k: Array, total: Array) -> Array:
        return total + columns[k].reshape(-1, *ones) * values[k]

    return lax.fori_loop(0, matrix.shape[1], add, jnp.zeros((matrix.shape[0], *signal.shape[:-1]), signal.dtype))
