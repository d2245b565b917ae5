"""A planner's weights between runs: table, loading from a parent, fit of planner and context."""

from pathlib import Path

from recogdrive.data.context import ContextSource
from recogdrive.evaluation.planner_agent import TrainablePlanner, trained_weights
from recogdrive.experiment import ConfigurationError
from recogdrive.models.bridge import Params
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


def require_fit(context: ContextSource, planner: TrainablePlanner) -> None:
    """Checks that the planner reads tokens as wide as the context source makes them.

    Raises:
      ConfigurationError: It does not.
    """
    if context.width == planner.context_width:
        return
    found = f"{type(context).__name__} makes tokens of width {context.width}"
    if planner.context_width == 0:
        raise ConfigurationError(f"{found}, {type(planner).__name__} reads none; include gin/context/none.gin.")
    raise ConfigurationError(f"{found}, the planner reads {planner.context_width}; set CONTEXT_WIDTH={context.width}.")
