"""Counts the operations of a program before it is compiled."""

import math
from typing import Any

import jax


def count_flops(program: Any) -> float:
    """Operations of all matrix products and convolutions of a traced program, two a multiply and add.

    Loops count as often as they run, where that is known when tracing; of branches, the costliest.

    Args:
      program: A jaxpr, closed or not.
    """
    return sum(_flops(equation) for equation in getattr(program, "jaxpr", program).eqns)


def _flops(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = parameters["dimension_numbers"].rhs_spec[0]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[features]
    if name == "cond":
        return max(count_flops(branch) for branch in parameters["branches"])
    inner = [leaf for leaf in jax.tree.leaves(list(parameters.values()), is_leaf=_is_program) if _is_program(leaf)]
    total = sum(map(count_flops, inner))
    if name == "scan":
        return total * parameters["length"]
    if name == "shard_map":
        return total * parameters["mesh"].size  # Shapes within are those of one device.
    return total


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
