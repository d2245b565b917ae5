"""On which side of a line a point lies, without rounding.

The sign of a 2 x 2 determinant decides every polygon test. In floating point it is right except within a hair of the
line, and a bound on its rounding tells where. `orientation` gives value and verdict; `exact_orientation` decides the
rest by sums of products that are free of rounding.

Source: Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates", 1997.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Shewchuk's bound `ccwerrboundA` is (3 + 16 eps) eps with eps half a unit in the last place; 4 eps leaves room.
# It also holds where the compiler fuses multiplication and addition, which rounds less.
_BOUND_IN_ROUNDINGS = 4.0
_SETTLED_AT_ONCE = 64

Answers = TypeVar("Answers")


def orientation(
    a: tuple[Array, Array], b: tuple[Array, Array], p: tuple[Array, Array]
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Twice the signed area of the triangle a, b, p: positive where p lies left of the way from a to b.

    Args:
      a: x and y, each (*n,), metres.
      b: Likewise.
      p: Likewise.

    Returns:
      The area in square metres, and whether its sign (zero included) is certain.
    """
    left = (b[0] - a[0]) * (p[1] - a[1])
    right = (p[0] - a[0]) * (b[1] - a[1])
    bound = _BOUND_IN_ROUNDINGS * jnp.finfo(left.dtype).eps / 2 * (jnp.abs(left) + jnp.abs(right))
    area = left - right
    # A bound of 0 means that each product has a zero factor, and differences of equal numbers are exactly 0.
    return area, (jnp.abs(area) > bound) | (bound == 0)


def exact_orientation(a: tuple[Array, Array], b: tuple[Array, Array], p: tuple[Array, Array]) -> Int[Array, "*n"]:
    """Sign of `orientation` without rounding: 1, 0 or -1.

    Exact for coordinates that are zero or between 1e-12 and 1e15 in size (float64: 1e-70 and 1e70), so that no product
    of their digits leaves the range of the format. About a thousand times slower than `orientation`.
    """
    (ax, ay), (bx, by), (px, py) = a, b, p
    ax, ay, bx, by, px, py = jnp.broadcast_arrays(ax, ay, bx, by, px, py)
    # (bx - ax)(py - ay) - (px - ax)(by - ay); the two products ax ay cancel.
    factors = ((bx, py), (-bx, ay), (-ax, py), (-px, by), (px, ay), (ax, by))
    terms = [u * v for x, y in factors for u in _halves(x) for v in _halves(y)]
    return _sign_of_sum(jnp.stack(terms))


def settle(
    unsure: Bool[Array, "*n"],
    found: Answers,
    decide: Callable[[Int[Array, "B"]], Answers],
    *,
    at_once: int = _SETTLED_AT_ONCE,
) -> Answers:
    """Replaces unsure answers by certain ones, a few at a time; costs nothing where all are sure.

    Args:
      unsure: Which answers to replace.
      found: Pytree of arrays (*n,) of answers so far.
      decide: Flat positions in `unsure` -> pytree of the certain answers there.
      at_once: How many are decided in one go.
    """

    def settle_some(carry: tuple[Answers, Array]) -> tuple[Answers, Array]:
        found, unsure = carry
        (chosen,) = jnp.nonzero(unsure, size=at_once, fill_value=unsure.size)
        answers = decide(jnp.minimum(chosen, unsure.size - 1))
        found = jax.tree.map(lambda old, new: old.at[chosen].set(new, mode="drop"), found, answers)
        return found, unsure.at[chosen].set(False, mode="drop")

    if unsure.size == 0:
        return found
    flat = jax.tree.map(lambda values: values.reshape(-1), found)
    settled, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[1]), settle_some, (flat, unsure.reshape(-1)))
    return jax.tree.map(lambda values, shaped: values.reshape(shaped.shape), settled, found)


def _halves(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """x as a sum of two numbers of at most half its significant bits, so that products of halves are exact."""
    integer, low_bits = (jnp.uint32, 12) if x.dtype == jnp.float32 else (jnp.uint64, 27)
    bits = jax.lax.bitcast_convert_type(x, integer)
    # Rounding to nearest leaves a rest of one bit less than cutting would.
    rounded = (bits + integer(1 << (low_bits - 1))) & ~integer((1 << low_bits) - 1)
    high = jax.lax.bitcast_convert_type(rounded, x.dtype)
    return high, x - high


def _sign_of_sum(terms: Float[Array, "K *n"]) -> Int[Array, "*n"]:
    """Sign of the sum over K of numbers, without rounding: grows an expansion of parts that do not overlap."""

    def add_to_part(carry: Array, part: Array) -> tuple[Array, Array]:
        total = carry + part
        virtual = total - carry
        error = (carry - (total - virtual)) + (part - virtual)
        return total, error

    def add_term(parts: Array, term: Array) -> tuple[Array, None]:
        # Parts grow in size; the new largest one takes the place of the first, which is never used.
        total, errors = jax.lax.scan(add_to_part, term, parts)
        return jnp.concatenate([errors[1:], total[None]]), None

    parts, _ = jax.lax.scan(add_term, jnp.zeros_like(terms), terms)
    # The largest part that is not zero outweighs all smaller ones together.
    start = jnp.zeros_like(terms[0])
    sign, _ = jax.lax.scan(lambda sign, part: (jnp.where(part == 0, sign, jnp.sign(part)), None), start, parts)
    return sign.astype(jnp.int32)
