"""A planner's weights between runs: table, loading from a parent, fit of planner and context."""

from pathlib import Path

import jax

from recogdrive.data.context import ContextSource
from recogdrive.experiment import ConfigurationError
from recogdrive.models.bridge import Params
from recogdrive.models.planner.official_checkpoint import load_official
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.stages.base import Parameter
from recogdrive.training.checkpoint import CheckpointError, load_params

OFFICIAL_SUFFIX = ".ckpt"


def describe_parameters(planner: DiffusionPlanner) -> list[Parameter]:
    """Rows of the parameter table."""
    return [Parameter(*row) for row in planner.parameter_table()]


def load_planner_weights(planner: DiffusionPlanner, parent: Path) -> Params:
    """Weights from a run folder (its best checkpoint; the moving average where it kept one) or an official `.ckpt`.

    Raises:
      ConfigurationError: Nothing usable is there, or the weights do not fit the planner; every misfit is named.
    """
    try:
        if parent.suffix == OFFICIAL_SUFFIX:
            return load_official(parent, planner)
        return load_params(parent, template=jax.eval_shape(planner.init, jax.random.key(0)))
    except (ValueError, OSError, CheckpointError) as error:
        raise ConfigurationError(f"Cannot start from PARENT={str(parent)!r}: {error}") from error


def require_fit(context: ContextSource, planner: DiffusionPlanner) -> None:
    """Checks that the planner reads tokens as wide as the context source makes them.

    Raises:
      ConfigurationError: It does not.
    """
    if context.width != planner.context_width:
        raise ConfigurationError(
            f"{type(context).__name__} makes tokens of width {context.width}, the planner reads "
            f"{planner.context_width}; set CONTEXT_WIDTH={context.width}."
        )
