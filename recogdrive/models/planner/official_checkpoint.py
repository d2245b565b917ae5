"""Reads and writes planner weights in the official layout: a Lightning file with `agent.action_head.` keys."""

import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from absl import logging

from recogdrive.models.bridge import Params, check_names_and_shapes
from recogdrive.models.planner.planner import DiffusionPlanner

PREFIX = "agent.action_head."
ETA = "eta.eta_logit"
"""Frozen parameter of DDIM models: the inverse of a squashing function at its limit. Stands for eta = 1."""
OTHER_PARTS = {
    "agent.action_head.old_policy.": "reference policy of the reinforcement-learning stage",
    "agent.backbone.": "vision-language model",
    "agent.model": "vision-language model",
}
"""Prefixes of what such a file may hold besides the planner; longest first."""
_WIDENED = (torch.float32, torch.float16, torch.bfloat16)
_BUFFER_RTOL = 1e-5
_BUFFER_ATOL = 1e-6
_LIGHTNING_VERSION = "2.2.1"


class OfficialState(NamedTuple):
    """Content of an official file: planner entries by planner-relative name, and how many entries were passed over."""

    planner: dict[str, torch.Tensor]
    passed_over: dict[str, int]


def read_official(path: str | Path) -> OfficialState:
    """Reads a Lightning file's planner entries without executing anything stored in it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a checkpoint, names a class that is not plain tensors and containers, or has keys
        outside the planner and the known other parts.
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
    planner, passed_over, unknown = {}, dict.fromkeys(OTHER_PARTS, 0), []
    for key, value in state.items():
        other = next((prefix for prefix in OTHER_PARTS if key.startswith(prefix)), None)
        if other is not None:
            passed_over[other] += 1
        elif key.startswith(PREFIX):
            planner[key.removeprefix(PREFIX)] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{path} has {len(unknown)} key(s) of no known part:\n  " + "\n  ".join(unknown))
    return OfficialState(planner, {prefix: count for prefix, count in passed_over.items() if count})


def load_official(path: str | Path, planner: DiffusionPlanner) -> Params:
    """Loads the trainable weights of an official checkpoint as float32.

    Every entry must be there with its shape; buffers carry no information and are compared with the planner's
    schedule; `eta.eta_logit` may hold anything, NaN of a damaged file included.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: see `read_official`; or entries are missing, unknown, misshapen, not finite, of a type that does not
        widen to float32, or buffers are of another schedule. All of them are listed.
    """
    state, passed_over = read_official(path)
    for prefix, count in passed_over.items():
        logging.info("%s: passed over %d entries under %s (%s)", path, count, prefix, OTHER_PARTS[prefix])
    fixed = fixed_entries(planner)
    shapes = {name: value.shape for name, value in fixed.items()}
    shapes |= {row.name: row.shape for row in planner.parameter_table()}
    try:
        check_names_and_shapes({name: tuple(value.shape) for name, value in state.items()}, shapes, "checkpoint entry")
        problems = _content_problems(state, fixed)
        if problems:
            raise ValueError(f"{len(problems)} checkpoint entry(s) do not fit:\n  " + "\n  ".join(problems))
    except ValueError as error:
        raise ValueError(f"{path} does not hold this planner: {error}") from None
    return {row.name: jnp.asarray(state[row.name].to(torch.float32).numpy()) for row in planner.parameter_table()}


def save_official(path: str | Path, params: Params, planner: DiffusionPlanner) -> None:
    """Writes weights as an official checkpoint, which upstream's evaluation and RL stages read.

    The file appears whole or not at all.

    Raises:
      ValueError: `params` does not hold exactly the planner's weights.
    """
    path = Path(path)
    entries = official_entries(params, planner)
    content = {
        "state_dict": {PREFIX + name: torch.from_numpy(np.array(value)) for name, value in entries.items()},
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


def official_entries(params: Params, planner: DiffusionPlanner) -> dict[str, np.ndarray]:
    """The planner-relative state dict of the official layout, in its order: buffers, weights, eta."""
    table = {row.name: row.shape for row in planner.parameter_table()}
    check_names_and_shapes({name: tuple(value.shape) for name, value in params.items()}, table, "parameter")
    fixed = fixed_entries(planner)
    in_network = {
        name: fixed.pop(name) if name in fixed else np.asarray(params[name], np.float32)
        for name in planner.network.state_dict()
    }
    eta = {name: fixed.pop(name) for name in (ETA,) if name in fixed}
    return fixed | in_network | eta


def fixed_entries(planner: DiffusionPlanner) -> dict[str, np.ndarray]:
    """Entries that are not trained: the schedule's buffers, the rotary frequencies and eta."""
    parameters = {row.name for row in planner.parameter_table()}
    entries = dict(planner.diffusion.buffers(planner.denoising_steps))
    entries |= {k: v.numpy() for k, v in planner.network.state_dict().items() if k not in parameters}
    if planner.diffusion.has_eta:
        entries[ETA] = np.array([math.inf], np.float32)
    return entries


def _content_problems(state: Mapping[str, torch.Tensor], fixed: Mapping[str, np.ndarray]) -> list[str]:
    """Lists entries whose values cannot be right."""
    problems = []
    for name, value in state.items():
        if name == ETA:
            continue
        if name in fixed:
            found, wanted = value.to(torch.float64).numpy(), fixed[name].astype(np.float64)
            if not np.allclose(found, wanted, rtol=_BUFFER_RTOL, atol=_BUFFER_ATOL):
                problems.append(
                    f"other schedule: {name} differs by up to {np.abs(found - wanted).max():.3g} from this planner's "
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
