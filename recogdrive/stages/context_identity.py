"""What a planner's context is made of, kept with the planner's weights and compared where they are used."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from recogdrive.data.context import ContextSource
from recogdrive.data.hidden_cache.container import differences
from recogdrive.data.vlm.vlm_inputs import VlmInputs
from recogdrive.evaluation.planner_agent import TrainablePlanner
from recogdrive.experiment import ConfigurationError


def context_dtype(context: ContextSource) -> np.dtype:
    """Type of a source's tokens in a batch."""
    return jnp.dtype(getattr(context, "dtype", "float32"))


def context_shapes(context: ContextSource) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of what a context source adds to a sample, without batch axis."""
    if isinstance(context, VlmInputs):
        return context.shapes()
    tokens = (context.num_tokens, context.width)
    return {"context": (tokens, context_dtype(context)), "context_mask": (tokens[:1], np.dtype(np.bool_))}


def identified(context: ContextSource, planner: TrainablePlanner) -> ContextSource:
    """The source, knowing what decides its values where a planner that runs the VLM itself knows that.

    Raises:
      ConfigurationError: The VLM's weights cannot be read, or the prompts are not for it.
    """
    fields_of = getattr(planner, "context_fields", None)
    if fields_of is None or not isinstance(context, VlmInputs):
        return context
    try:
        fields = fields_of(context.prompts)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"The online mode cannot start: {error}") from error
    return context if fields is None else context.identified(fields)


def describe_context(context: ContextSource) -> dict[str, Any]:
    """What a run's `run.json` says of its context source: kind, shape, and what decides the values where it knows."""
    known = {"source": type(context).__name__, "num_tokens": context.num_tokens, "width": context.width}
    fingerprint = getattr(context, "fingerprint", None)
    if fingerprint is None:
        return known
    return {**known, "fingerprint": fingerprint, "fields": dict(getattr(context, "fields", {}))}


def require_same_context(context: ContextSource, parent: Path, *, allowed: bool, binding: str) -> None:
    """Refuses weights that were trained on a context with another fingerprint than the source's.

    Sources without fingerprint, and weights that come without `run.json`, are not checked.

    Args:
      context: The source that is configured now.
      parent: Run folder or file of the weights.
      allowed: Whether a difference is only logged.
      binding: Class whose parameter `allow_other_context` allows it.

    Raises:
      ConfigurationError: The fingerprints differ; names both, and every field that does.
    """
    fingerprint = getattr(context, "fingerprint", None)
    trained = _trained_on(parent)
    if fingerprint is None or trained.get("fingerprint") in (None, fingerprint):
        return
    fields = differences(trained.get("fields", {}), getattr(context, "fields", {}))
    message = (
        f"The planner in {parent} was trained on the context {trained['fingerprint'][:16]} and would now read "
        f"{fingerprint[:16]} ({'; '.join(fields) or 'their fields are equal'})."
    )
    if not allowed:
        raise ConfigurationError(
            f"{message} Read the context it was trained on, or bind {binding}.allow_other_context = True to measure "
            "what the difference does."
        )
    logging.warning("%s This is allowed.", message)


def _trained_on(parent: Path) -> dict[str, Any]:
    """What the run of these weights says of its context; empty where it says nothing."""
    try:
        record = json.loads((parent / "run.json").read_text(encoding="utf-8"))
        context = record.get("context")
    except (OSError, ValueError, AttributeError):
        return {}
    return context if isinstance(context, dict) else {}
