"""Reads and writes weights in the official layouts: Lightning files whose keys carry a model's prefix."""

import functools
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
import torch
from absl import logging

from recogdrive.models.bridge import Params, check_names_and_shapes
from recogdrive.models.planner.planner import DiffusionPlanner, ParameterRow

PREFIX = "agent.action_head."
ETA = "eta.eta_logit"
"""Frozen parameter of DDIM models: the inverse of a squashing function at its limit. Stands for eta = 1."""
OLD_POLICY = "old_policy."
"""Follows the prefix where a planner of the reinforcement-learning stage holds its reference policy's entries."""
OTHER_PARTS = {
    PREFIX + OLD_POLICY: "reference policy of the reinforcement-learning stage",
    "agent.backbone.": "vision-language model",
    "agent.model": "vision-language model",
}
"""Prefixes of what a planner's file may hold besides the planner; longest first."""
_WIDENED = (torch.float32, torch.float16, torch.bfloat16)
_BUFFER_RTOL = 1e-5
_BUFFER_ATOL = 1e-6
_LIGHTNING_VERSION = "2.2.1"


class WeightedModel(Protocol):
    """A model whose weights are told by its parameter table."""

    def parameter_table(self) -> Sequence[ParameterRow]:
        """Every trainable tensor."""
        ...


@dataclass(frozen=True)
class OfficialLayout:
    """How the official code stores a model.

    Attributes:
      prefix: What every key starts with; names below are without it.
      entries: Name -> its constant value, or None for a trained weight; in file order.
      free: Constants that may hold anything when read, NaN of a damaged file included.
      other_parts: Prefix of keys that belong to something else in the same file -> what that is; longest first.
    """

    prefix: str
    entries: Mapping[str, np.ndarray | None]
    free: frozenset[str] = frozenset()
    other_parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def fixed(self) -> dict[str, np.ndarray]:
        """The constants."""
        return {name: value for name, value in self.entries.items() if value is not None}


@functools.singledispatch
def official_layout(model: Any) -> OfficialLayout:
    """The layout of a model's official checkpoints; every model with such files registers its own.

    Raises:
      TypeError: There are no official checkpoints of this kind of model.
    """
    raise TypeError(f"{type(model).__name__} has no official checkpoints")


@official_layout.register
def _(model: DiffusionPlanner) -> OfficialLayout:
    """Buffers of the schedule, the network, eta."""
    parameters = {row.name for row in model.parameter_table()}
    network = {k: None if k in parameters else v.numpy() for k, v in model.network.state_dict().items()}
    eta = {ETA: np.array([math.inf], np.float32)} if model.diffusion.has_eta else {}
    entries = dict(model.diffusion.buffers(model.denoising_steps)) | network | eta
    return OfficialLayout(PREFIX, entries, frozenset(eta), OTHER_PARTS)


class OfficialState(NamedTuple):
    """Content of an official file: the model's entries without prefix, and how many entries were passed over."""

    entries: dict[str, torch.Tensor]
    passed_over: dict[str, int]


def read_official(
    path: str | Path, prefix: str = PREFIX, other_parts: Mapping[str, str] = OTHER_PARTS
) -> OfficialState:
    """Reads the entries of a Lightning file that carry a prefix, without executing anything stored in it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a checkpoint, names a class that is not plain tensors and containers, or has keys
        outside the prefix and the known other parts.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        # Memory-mapped, so that a vision-language model in the same file is never read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        refused = re.search(r"(?:GLOBAL|class|allowlist) ([\w.]+\.[\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{path} names {refused[1]}, which is not on the list of plain tensors and containers; it was not "
                f"loaded. Save the file again with only 'state_dict' in it"
            ) from error
        raise ValueError(f"{path} cannot be read as a torch checkpoint: {error}") from error
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} has no 'state_dict', so it is not a Lightning checkpoint")
    entries, passed_over, unknown = {}, dict.fromkeys(other_parts, 0), []
    for key, value in state.items():
        other = next((part for part in other_parts if key.startswith(part)), None)
        if other is not None:
            passed_over[other] += 1
        elif key.startswith(prefix):
            entries[key.removeprefix(prefix)] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{path} has {len(unknown)} key(s) of no known part:\n  " + "\n  ".join(unknown))
    return OfficialState(entries, {part: count for part, count in passed_over.items() if count})


def load_official(path: str | Path, model: WeightedModel) -> Params:
    """Loads the trainable weights of an official checkpoint as float32.

    Every entry must be there with its shape; constants carry no information and are compared with the model's own,
    those apart that may hold anything (`eta.eta_logit`).

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: there are no official checkpoints of such a model.
      ValueError: see `read_official`; or entries are missing, unknown, misshapen, not finite, of a type that does not
        widen to float32, or buffers are of another schedule. All of them are listed.
    """
    layout, table = official_layout(model), model.parameter_table()
    state, passed_over = read_official(path, layout.prefix, layout.other_parts)
    for part, count in passed_over.items():
        logging.info("%s: passed over %d entries under %s (%s)", path, count, part, layout.other_parts[part])
    shapes = {name: value.shape for name, value in layout.fixed.items()}
    shapes |= {row.name: row.shape for row in table}
    try:
        check_names_and_shapes({name: tuple(value.shape) for name, value in state.items()}, shapes, "checkpoint entry")
        problems = _content_problems(state, layout)
        if problems:
            raise ValueError(f"{len(problems)} checkpoint entry(s) do not fit:\n  " + "\n  ".join(problems))
    except ValueError as error:
        raise ValueError(f"{path} does not hold this model: {error}") from None
    return {row.name: jnp.asarray(state[row.name].to(torch.float32).numpy()) for row in table}


def official_state_dict(
    params: Params, model: WeightedModel, old_policy: Params | None = None
) -> dict[str, np.ndarray]:
    """Everything an official checkpoint holds under its full keys, in file order.

    Args:
      params: The model's weights.
      model: Whose they are.
      old_policy: Weights of the frozen reference policy of the reinforcement-learning stage: every key occurs a second
        time, below `agent.action_head.old_policy.`. None writes a planner that has none.

    Raises:
      TypeError: There are no official checkpoints of such a model, or none with a reference policy.
      ValueError: `params` or `old_policy` does not hold exactly the model's weights.

    Source: upstream `ReCogDriveDiffusionPlanner`, whose `old_policy` is a copy of itself.
    """
    layout = official_layout(model)
    state = {layout.prefix + name: value for name, value in official_entries(params, model).items()}
    if old_policy is None:
        return state
    reference = layout.prefix + OLD_POLICY
    if reference not in layout.other_parts:
        raise TypeError(f"{type(model).__name__} has no official checkpoints with a reference policy")
    return state | {reference + name: value for name, value in official_entries(old_policy, model).items()}


def save_official(path: str | Path, params: Params, model: WeightedModel, old_policy: Params | None = None) -> None:
    """Writes weights as an official checkpoint, which the official code reads; see `official_state_dict`.

    The file appears whole or not at all.

    Raises:
      TypeError: There are no official checkpoints of such a model, or none with a reference policy.
      ValueError: `params` or `old_policy` does not hold exactly the model's weights.
    """
    path = Path(path)
    state = official_state_dict(params, model, old_policy)
    content = {
        "state_dict": {key: torch.from_numpy(np.array(value)) for key, value in state.items()},
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": _LIGHTNING_VERSION,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def official_entries(params: Params, model: WeightedModel) -> dict[str, np.ndarray]:
    """A model's state dict in the official layout and order, without prefix; a planner's: buffers, weights, eta."""
    table = {row.name: row.shape for row in model.parameter_table()}
    check_names_and_shapes({name: tuple(value.shape) for name, value in params.items()}, table, "parameter")
    return {
        name: np.asarray(params[name], np.float32) if constant is None else constant
        for name, constant in official_layout(model).entries.items()
    }


def _content_problems(state: Mapping[str, torch.Tensor], layout: OfficialLayout) -> list[str]:
    """Lists entries whose values cannot be right."""
    problems, fixed = [], layout.fixed
    for name, value in state.items():
        if name in layout.free:
            continue
        if name in fixed:
            found, wanted = value.to(torch.float64).numpy(), fixed[name].astype(np.float64)
            if not np.allclose(found, wanted, rtol=_BUFFER_RTOL, atol=_BUFFER_ATOL):
                problems.append(
                    f"other schedule: {name} differs by up to {np.abs(found - wanted).max():.3g} from this model's "
                    f"{_setting(name)}"
                )
        elif value.dtype not in _WIDENED:
            problems.append(f"wrong type: {name} is {value.dtype}, which float32 does not hold")
        elif not torch.isfinite(value).all():
            problems.append(f"not finite: {name}")
    return problems


def _setting(name: str) -> str:
    """Which setting a buffer follows from, for error messages."""
    return "denoising_steps" if name.startswith("ddim_") else "rotary code" if "rotary" in name else "noise schedule"
