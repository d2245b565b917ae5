"""What a stage is, and how a composed one is described and run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import gin
from absl import logging

from recogdrive.composition import Composition
from recogdrive.experiment import ConfigurationError, lineage
from recogdrive.run_folder import RunFolder
from recogdrive.training.loop import PREEMPTED_EXIT_CODE, Preempted

FAILED_EXIT_CODE = 1


@dataclass(frozen=True)
class Parameter:
    """One row of the parameter table."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int


@dataclass(frozen=True)
class Description:
    """What a stage would do, without doing it.

    Attributes:
      data: Split -> what was found, or why nothing was.
      parameters: Weights of the model.
      memory_bytes: What needs memory -> bytes, on each device.
      notes: Anything else worth knowing before the run.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    parameters: Sequence[Parameter] = ()
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Stage(Protocol):
    """One arrow of the pipeline: reads its parent's output, writes its own."""

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Does the work in `folder.path`; returns the figures worth printing."""
        ...

    def describe(self) -> Description:
        """Says what the work would be; must not need the data to be there."""
        ...


@gin.configurable
def run(stage: Stage, parent: str | None = None, *, use: Callable[[Stage, Path | None], object]) -> object:
    """Root of every configuration.

    Args:
      stage: What to run.
      parent: Run folder or official `.ckpt` file whose weights the stage starts from.
      use: What to do with the stage; given by the program, never by a configuration.
    """
    return use(stage, None if parent is None else Path(parent))


def execute(composition: Composition, workdir: Path) -> int:
    """Runs a composed experiment in `workdir`; returns the process's exit code.

    Raises:
      ConfigurationError: The experiment cannot run as composed.
    """
    return run(use=lambda stage, parent: _execute(composition, workdir, stage, parent))


def _execute(composition: Composition, workdir: Path, stage: Stage, parent: Path | None) -> int:
    _require_parent(composition, parent)
    folder = RunFolder(workdir, composition, None if parent is None else str(parent))
    try:
        figures = stage.run(folder, parent)
    except Preempted as stop:
        folder.close("preempted")
        logging.warning("%s Run the same command again to continue.", stop)
        return PREEMPTED_EXIT_CODE
    except (Exception, KeyboardInterrupt) as error:
        folder.close(f"failed: {type(error).__name__}: {error}")
        raise
    folder.close("finished")
    for name, value in figures.items():
        logging.info("%s = %.4g", name, value)
    return 0


def _require_parent(composition: Composition, parent: Path | None) -> None:
    experiment = composition.experiment
    if experiment is not None and experiment.starts_from is not None and parent is None:
        raise ConfigurationError(
            f"{experiment.name} starts from the weights of {experiment.starts_from}: pass "
            f"--gin_bindings \"PARENT='FOLDER'\" with the folder of such a run, or an official .ckpt file."
        )
    if parent is not None and not parent.exists():
        raise ConfigurationError(f"PARENT={str(parent)!r} does not exist; name a run folder or an official .ckpt file.")


def describe(composition: Composition) -> str:
    """What `--dry_run` prints: configuration, lineage, data found, weights, memory."""
    sections = [f"# Configuration of {composition.name}\n\n{composition.resolved().strip()}", _lineage(composition)]
    # An experiment this version cannot run may have no stage yet; what is configured is shown all the same.
    has_stage = "stage" in gin.get_bindings(run, resolve_references=False)
    description = run(use=lambda stage, parent: stage.describe()) if has_stage else Description()
    if description.data:
        width = max(map(len, description.data))
        sections.append("# Data\n\n" + "\n".join(f"{k:<{width}}  {v}" for k, v in description.data.items()))
    if description.parameters:
        sections.append(_parameter_table(description.parameters))
    if description.memory_bytes:
        sections.append(_memory_table(description.memory_bytes))
    if description.notes:
        sections.append("# Notes\n\n" + "\n".join(description.notes))
    if composition.experiment is not None and composition.experiment.missing is not None:
        sections.append(f"# Not in this version\n\n{composition.name} needs {composition.experiment.missing}.")
    return "\n\n".join(sections)


def _lineage(composition: Composition) -> str:
    if composition.experiment is None:
        return "# Lineage\n\ncustom configuration, not in the registry"
    chain = " -> ".join(e.name for e in lineage(composition.experiment))
    lines = [chain, composition.experiment.description]
    reference = composition.experiment.reference
    if reference is not None:
        lines.append(f"reference: {reference.pdms} PDMS on {reference.split} ({reference.source})")
    return "# Lineage\n\n" + "\n".join(lines)


def _parameter_table(parameters: Sequence[Parameter]) -> str:
    name_width = max(len(p.name) for p in parameters)
    shapes = [" x ".join(map(str, p.shape)) or "scalar" for p in parameters]
    shape_width = max(map(len, shapes))
    rows = [
        f"{p.name:<{name_width}}  {shape:<{shape_width}}  {p.dtype:<8}  {p.count:>12,}"
        for p, shape in zip(parameters, shapes, strict=True)
    ]
    total = sum(p.count for p in parameters)
    rows.append(f"{'total':<{name_width}}  {f'{len(parameters)} tensors':<{shape_width}}  {'':<8}  {total:>12,}")
    return "# Parameters\n\n" + "\n".join(rows)


def _memory_table(memory_bytes: Mapping[str, int]) -> str:
    width = max(map(len, [*memory_bytes, "total"]))
    rows = [f"{name:<{width}}  {count / 2**20:>10,.1f} MiB" for name, count in memory_bytes.items()]
    rows.append(f"{'total':<{width}}  {sum(memory_bytes.values()) / 2**20:>10,.1f} MiB")
    return "# Memory on each device\n\n" + "\n".join(rows)
