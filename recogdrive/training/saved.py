"""Reading the files of saved steps: which are sound, what they hold, how they differ from what is wanted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from recogdrive.training import manifest

CHECKPOINTS_FOLDER = "checkpoints"
"""Name of the folder of checkpoints within a run folder."""

STATE, STREAM, LOOP = "state", "stream", "loop"
"""Parts of a checkpoint: arrays, position of the data stream (JSON), state of the loop (JSON)."""

_LISTED = 20
"""Lines shown of a long list before the rest is counted instead."""

Json = dict[str, Any]


def saved_steps(folder: Path) -> list[int]:
    """Steps with a checkpoint in `folder`, oldest first, sound or not."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def has_checkpoint(run_folder: Path) -> bool:
    """Whether a run in this folder goes on from a checkpoint, and so needs no weights to start from.

    True for damaged checkpoints too: a run whose checkpoints cannot be used stops, it does not start over.
    """
    return bool(saved_steps(Path(run_folder) / CHECKPOINTS_FOLDER))


def usable_steps(folder: Path) -> tuple[list[int], dict[int, str]]:
    """Verifies every checkpoint: the sound steps, oldest first, and the reason for each of the others."""
    reasons = {step: "; ".join(manifest.problems(folder / str(step))) for step in saved_steps(folder)}
    return [step for step, reason in reasons.items() if not reason], {s: r for s, r in reasons.items() if r}


def listed(lines: list[str]) -> str:
    """Lines of a message, indented below it; long lists end in a count."""
    more = f"\n  ... and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "".join(f"\n  {line}" for line in lines[:_LISTED]) + more


def _flat(tree: PyTree) -> dict[tuple[str, ...], Any]:
    """Leaves of nested dictionaries by their path."""
    if not isinstance(tree, Mapping):
        return {(): tree}
    return {(name, *path): leaf for name, sub in tree.items() for path, leaf in _flat(sub).items()}


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Missing, unexpected and misshapen tensors, one line each."""
    saved, wanted = _flat(saved), _flat(wanted)
    lines = []
    for path in sorted(set(saved) | set(wanted)):
        name = "/".join(path)
        if path not in saved:
            lines.append(f"{name}: needed with shape {tuple(wanted[path].shape)}, not in the checkpoint")
        elif path not in wanted:
            lines.append(f"{name}: in the checkpoint with shape {tuple(saved[path].shape)}, unknown here")
        elif tuple(saved[path].shape) != tuple(wanted[path].shape):
            lines.append(
                f"{name}: shape {tuple(saved[path].shape)} in the checkpoint, {tuple(wanted[path].shape)} here"
            )
    return lines


def parameter_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Names and shapes in which two sets of weights differ, one line each; empty where they fit."""
    return listed(differences(found, wanted))


def stored_shapes(folder: Path) -> Mapping[str, Any]:
    """Shape and dtype of every array of one checkpoint, in the layout of `to_stored`."""
    with _checkpointer(alone=True) as checkpointer:
        return checkpointer.metadata(folder / STATE).item_metadata.tree


def restore_arrays(folder: Path, wanted: Mapping[str, Any], *, partial: bool) -> dict[str, Any]:
    """Arrays of one checkpoint, placed as `wanted` says; with `partial` the checkpoint may hold more than that.

    Where no array lies on devices of other processes, these are not waited for.
    """
    arguments = ocp.args.PyTreeRestore(
        wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=partial
    )
    own = all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(wanted))
    with _checkpointer(alone=own) as checkpointer:
        return checkpointer.restore(folder / STATE, args=arguments)


def _checkpointer(*, alone: bool) -> ocp.Checkpointer:
    if not alone or jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    number = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process_{number}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def read_json(folder: Path, item: str) -> Json:
    """The JSON part `item` of one checkpoint."""
    return json.loads((folder / item / "metadata").read_text(encoding="utf-8"))
