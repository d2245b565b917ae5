"""A planner's weights between runs: table, loading from a parent, fit of planner and context."""

from pathlib import Path

import jax

from recogdrive.data.context import ContextSource
from recogdrive.evaluation.planner_agent import OFFICIAL_SUFFIX, TrainablePlanner, trained_weights
from recogdrive.experiment import ConfigurationError
from recogdrive.hosts import member
from recogdrive.models.bridge import Params
from recogdrive.models.planner.official_checkpoint import save_official
from recogdrive.stages.base import Parameter
from recogdrive.training.checkpoint import CheckpointError


def describe_parameters(planner: TrainablePlanner) -> list[Parameter]:
    """Rows of the parameter table."""
    return [Parameter(*row) for row in planner.parameter_table()]


def load_planner_weights(planner: TrainablePlanner, parent: Path) -> Params:
    """Weights to start from: a run folder's or an official `.ckpt`'s, see `trained_weights`.

    Raises:
      ConfigurationError: Nothing usable is there, or the weights do not fit the planner; every misfit is named.
    """
    try:
        return trained_weights(planner, parent)
    except (ValueError, OSError, CheckpointError) as error:
        raise ConfigurationError(f"Cannot start from PARENT={str(parent)!r}: {error}") from error


def initial_weights(planner: TrainablePlanner, parent: Path | None, seed: int) -> Params | None:
    """Weights that training starts from; None where the training loop draws all of them.

    Args:
      planner: What trains.
      parent: Whose weights it starts from; None draws a planner's. A VLM that trains too is read from its folder.
      seed: Of drawn weights.

    Raises:
      ConfigurationError: As `load_planner_weights`; or the VLM's folder cannot be used.
    """
    if parent is not None:
        return load_planner_weights(planner, parent)
    complete = getattr(planner, "complete", None)
    if complete is None:
        return None
    try:
        key, _ = jax.random.split(jax.random.key(seed))  # As the training loop does.
        return complete(jax.jit(planner.planner.init)(key))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"Cannot start from the VLM's weights: {error}") from error


def export_weights(planner: TrainablePlanner, weights: Params, folder: Path, reference: Params | None = None) -> None:
    """Writes what the official code reads: the planner as `<name>.ckpt`, and beside it a VLM that was trained with it.

    Of several processes the first writes; all call it.

    Args:
      planner: What was trained.
      weights: All of its weights.
      folder: Where to; made where it is missing.
      reference: Weights of the frozen reference policy, which go into the planner's file; None writes none.
    """
    if member.is_several():
        weights = member.host_weights(weights)
        reference = None if reference is None else member.host_weights(reference)
    if not member.is_lead():
        return
    folder.mkdir(exist_ok=True)
    alone = getattr(planner, "planner", planner)
    own = {row.name for row in alone.parameter_table()}
    planners, old_policy = (
        None if every is None else {name: value for name, value in every.items() if name in own}
        for every in (weights, reference)
    )
    save_official(folder / f"{planner.name}{OFFICIAL_SUFFIX}", planners, alone, old_policy)
    export = getattr(planner, "export_vlm", None)
    if export is not None:
        export(folder, weights)


def require_fit(context: ContextSource, planner: TrainablePlanner) -> None:
    """Checks that the planner reads tokens as wide as the context source makes them.

    Raises:
      ConfigurationError: It does not.
    """
    if getattr(context, "holds_prompts", False) != getattr(planner, "reads_prompts", False):
        raise ConfigurationError(
            f"{type(context).__name__} and {type(planner).__name__} do not fit: an OnlinePlanner reads what VlmInputs "
            "makes, and no other planner does; include gin/option/online.gin for both, or for neither."
        )
    if context.width == planner.context_width:
        return
    found = f"{type(context).__name__} makes tokens of width {context.width}"
    if planner.context_width == 0:
        raise ConfigurationError(f"{found}, {type(planner).__name__} reads none; include gin/context/none.gin.")
    raise ConfigurationError(f"{found}, the planner reads {planner.context_width}; set CONTEXT_WIDTH={context.width}.")
