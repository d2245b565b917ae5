"""Runs methods of torch modules on JAX arrays: the one file that touches torchax.

A bridged module is a function of its parameters: weights come in as a dict of JAX arrays, nothing is stored on the
module, and no torch random number is ever drawn. A draw inside a traced function would be a constant of the compiled
program, the same at every step, so it is an error here; noise enters as an argument.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

Params = dict[str, jax.Array]
"""Torch parameter name -> array."""


class TorchRandomnessError(RuntimeError):
    """A torch module drew, or would draw, a random number of its own."""


class _RefusedKey:
    """Stands where torchax keeps its random key; splitting it raises."""


class _Method(torch.nn.Module):
    """Makes any method of a module reachable for `torch.func.functional_call`, which only calls `forward`."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return getattr(self.module, name)(*args, **kwargs)


def functional(module: torch.nn.Module, without: Sequence[str] = ()) -> Callable[..., Any]:
    """Turns a torch module into a pure function of its parameters that JAX can trace, differentiate and compile.

    The result is called as `f(params, method, *args, **kwargs)`: `params` holds every parameter by its torch name,
    `args` and `kwargs` are pytrees of arrays (Python scalars and None pass through), and the outputs are JAX arrays.
    Parameters of `module` may live on torch's meta device, for they are never read; buffers are taken from `module`
    as constants. `capture=(name, ...)` adds a second result: submodule name -> what that submodule returned.

    Args:
      module: Where the methods are.
      without: Beginnings of the names of parameters that are not taken, because what is called does not read them.

    Raises (when called):
      TorchRandomnessError: the module draws random numbers.
      ValueError: parameters are missing, unknown, or have the wrong shape (all of them are listed).

    Raises (here):
      ValueError: the module is in training mode with dropout or batch statistics, or a buffer is on the meta device.
    """
    _require_deterministic(module)
    buffers = {name: _to_numpy(name, buffer) for name, buffer in module.named_buffers()}
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in module.named_parameters()
        if not name.startswith(tuple(without))
    }
    wrapped = _Method(module)

    def call(params: Params, method: str, *args: Any, capture: Sequence[str] = (), **kwargs: Any) -> Any:
        check_names_and_shapes({name: np.shape(value) for name, value in params.items()}, shapes, "parameter")
        state = {f"module.{name}": value for name, value in {**params, **buffers}.items()}
        with _refuse_torch_randomness() as (torch_view, jax_view), _captured(module, capture) as captured:
            arguments = (method, torch_view(_arrays(args)), torch_view(_arrays(kwargs)))
            out = torch.func.functional_call(wrapped, torch_view(_arrays(state)), arguments, strict=not without)
            out = jax_view(out)
            captured = {name: jax_view(value) for name, value in captured.items()}
        return (out, captured) if capture else out

    return call


def call_jax(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a JAX function from within a bridged module.

    Args:
      function: Takes and returns pytrees of JAX arrays.
      args: Its arguments as the module has them: tensors of a bridged call, or values that are no tensors.
      kwargs: Likewise.

    Returns:
      What `function` returns, as tensors of the bridged call.
    """
    from torchax import interop

    return interop.call_jax(function, *args, **kwargs)


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, pieces: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` from within a bridged module: a step of torch code, compiled once however many there are.

    A backward pass computes each step anew from its carry and slice, so that these are all that is kept.

    Args:
      step: Carry and slice of `pieces` -> next carry and what is stacked; all pytrees of tensors of the bridged call.
      carry: What the first step gets.
      pieces: Tensors with the steps in front.

    Returns:
      The last carry, and what the steps gave beside it, with the steps in front.
    """
    from torchax import interop

    def jax_step(carry: Any, piece: Any) -> tuple[Any, Any]:
        return interop.jax_view(step(*interop.torch_view((carry, piece))))

    jax_step = jax.checkpoint(jax_step, prevent_cse=False)  # A scan needs no guard against merging.
    return call_jax(lambda carry, pieces: jax.lax.scan(jax_step, carry, pieces), carry, pieces)


def check_names_and_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Raises one ValueError naming every missing, unknown and misshapen entry of `found`."""
    problems = [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    problems += [f"unknown: {name} {found[name]}" for name in found if name not in expected]
    problems += [
        f"wrong shape: {name} is {tuple(found[name])}, expected {tuple(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    if problems:
        raise ValueError(f"{len(problems)} {what}(s) do not fit:\n  " + "\n  ".join(problems))


def _require_deterministic(module: torch.nn.Module) -> None:
    """Refuses modules whose forward pass is random or stateful by construction."""
    for name, part in module.named_modules():
        if not part.training:
            continue
        dropout = part.p if isinstance(part, torch.nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
        if isinstance(dropout, float) and dropout > 0:
            raise ValueError(
                f"{name or 'module'} ({type(part).__name__}) drops out with probability {dropout} in training mode; "
                f"call .eval() or set the probability to 0 and inject noise as an argument"
            )
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name or 'module'} ({type(part).__name__}) updates running statistics in training mode, which is "
                f"lost under JAX; call .eval()"
            )


def _to_numpy(name: str, buffer: torch.Tensor) -> np.ndarray:
    if buffer.is_meta:
        raise ValueError(f"buffer {name} is on the meta device and has no values; create it with device='cpu'")
    return buffer.detach().cpu().numpy()


def _arrays(tree: Any) -> Any:
    """NumPy leaves become JAX arrays; everything else stays."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


@contextlib.contextmanager
def _refuse_torch_randomness() -> Iterator[tuple[Callable, Callable]]:
    """torchax's environment without random numbers; yields its two views, to torch and to JAX."""
    import torchax  # Loading it changes a few torch defaults, so only code that runs a module does.
    from torchax import interop

    # torchax makes its environment, a random key included, when first asked. Made while JAX traces, the key would be a
    # tracer that outlives its trace.
    with jax.ensure_compile_time_eval():
        environment = torchax.default_env()
    state = torch.get_rng_state()
    try:
        # no_grad only switches off torch's own bookkeeping; JAX differentiates all the same.
        with environment.override_property(prng=_RefusedKey()), environment, torch.no_grad():
            yield interop.torch_view, interop.jax_view
    except Exception as error:
        if _RefusedKey.__name__ in str(error) or not torch.equal(state, torch.get_rng_state()):
            raise TorchRandomnessError(_RANDOMNESS) from error
        raise
    if not torch.equal(state, torch.get_rng_state()):
        raise TorchRandomnessError(_RANDOMNESS)


_RANDOMNESS = (
    "the module drew a torch random number while being traced; under jax.jit it would be the same in every call. "
    "Pass the noise as an argument, drawn from a JAX key"
)


@contextlib.contextmanager
def _captured(module: torch.nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Records the outputs of the named submodules (the last call's, where one is called more than once)."""
    outputs: dict[str, Any] = {}

    def recorder(name: str) -> Callable:
        def record(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            outputs[name] = output

        return record

    handles = [module.get_submodule(name).register_forward_hook(recorder(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
