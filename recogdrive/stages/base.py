"""What a stage is, and how a composed one is described and run."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Protocol

import gin
import jax

from recogdrive.composition import Composition
from recogdrive.experiment import ConfigurationError, lineage
from recogdrive.hosts import member
from recogdrive.hosts.command import explain
from recogdrive.pdm.machine import MachineError
from recogdrive.run_folder import RunFolder, write_text
from recogdrive.stages.executors import WorkerError
from recogdrive.training import goodput, profiling
from recogdrive.training.checkpoint import CheckpointError
from recogdrive.training.preemption import PREEMPTED_EXIT_CODE, Preempted
from recogdrive.training.summary import TENSORBOARD_FOLDER
from recogdrive.training.watch import STOPPED_EXIT_CODE, ThresholdReached
from recogdrive.training.window import NonFiniteError

FAILED_EXIT_CODE = 1
EXPLAINED = (ValueError, OSError, CheckpointError, NonFiniteError, MachineError, WorkerError)
"""Failures whose messages are written for the person who runs the experiment."""


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
    """One arrow of the pipeline: reads its parent's output, writes its own.

    One that can be run by several processes says so by `runs_on_several_processes = True`.
    """

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Does the work in `folder.path`; returns the figures worth printing."""
        ...

    def describe(self) -> Description:
        """Says what the work would be; must not need the data to be there."""
        ...


@gin.configurable
def run(stage: Stage, parent: str | None = None) -> tuple[Stage, Path | None]:
    """Root of every configuration: what runs, and from which weights.

    Args:
      stage: What to run.
      parent: Weights the stage starts from: a run folder, an official `.ckpt` file, or a folder of VLM weights.

    Returns:
      The stage, built, and the parent's path.
    """
    return stage, None if parent is None else Path(parent)


def build() -> tuple[Stage, Path | None]:
    """Builds the stage that the loaded configuration describes.

    Raises:
      ConfigurationError: A component refuses its parameters, or one is missing.
    """
    try:
        return run()
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The configuration cannot be built: {error}") from error


def execute(composition: Composition, workdir: Path, profile_steps: profiling.StepRange | None = None) -> int:
    """Runs a composed experiment in `workdir`; returns the process's exit code.

    A failure whose message says what is wrong is shown by its message, its traceback kept in `error.txt`; any other is
    a defect and is raised.

    Args:
      composition: What to run.
      workdir: Run folder.
      profile_steps: Training steps to trace; None traces nothing.

    Raises:
      ConfigurationError: The experiment cannot run as composed.
    """
    began = perf_counter()
    stage, parent = build()
    if member.is_several() and not getattr(stage, "runs_on_several_processes", False):
        raise ConfigurationError(
            f"{composition.name} runs in one process; start it on one host alone (SLURM: --nodes=1 --ntasks=1)."
        )
    _require_parent(composition, parent)
    if profile_steps is not None and not hasattr(stage, "step_shapes"):
        raise ConfigurationError(f"--profile_steps traces training steps, and {composition.name} trains nothing.")
    folder = RunFolder(workdir, composition, None if parent is None else str(parent))
    earlier = len(goodput.read_attempts(workdir))
    try:
        with profiling.tracing(profile_steps):
            stage.run(folder, parent)
    except Preempted as stop:
        folder.close("preempted")
        sys.stdout.write(_where_time_went(workdir, earlier, perf_counter() - began))
        sys.stderr.write(f"stopped after step {stop.step}, which is saved; run the same command again to continue\n")
        return PREEMPTED_EXIT_CODE
    except ThresholdReached as stop:
        folder.close(str(stop))
        sys.stdout.write(_where_time_went(workdir, earlier, perf_counter() - began))
        sys.stderr.write(f"{stop}\nThe step is saved; to go on all the same, change the threshold and run it again.\n")
        return STOPPED_EXIT_CODE
    except EXPLAINED as error:
        member.wait_for_the_cause(error)
        explain(str(error))
        folder.close(f"failed: {type(error).__name__}: {error}")
        trace = folder.path / ("error.txt" if member.is_lead() else f"error.{jax.process_index()}.txt")
        write_text(trace, traceback.format_exc())
        sys.stderr.write(f"error: {error}\n(traceback in {trace})\n")
        return FAILED_EXIT_CODE
    except BaseException as error:
        member.wait_for_the_cause(error)
        folder.close(f"failed: {type(error).__name__}: {error}")
        raise
    folder.close("finished")
    sys.stdout.write(_where_time_went(workdir, earlier, perf_counter() - began))
    if member.is_lead():
        sys.stdout.write(_where_to_look(workdir) + "\n")
    return 0


def _where_time_went(workdir: Path, earlier: int, seconds: float) -> str:
    """Table of the time that training took in this attempt; nothing where none was done, or on any but the lead.

    Args:
      workdir: Run folder.
      earlier: Times that training had been started before.
      seconds: Duration of the attempt.
    """
    attempts = goodput.read_attempts(workdir)
    if len(attempts) <= earlier or jax.process_index() != 0:
        return ""
    outside = seconds - attempts[-1].wall
    return f"\n{goodput.table(attempts)}\n(and {outside:,.1f} s before and after: data, final evaluation, export)\n"


def _where_to_look(workdir: Path) -> str:
    """What a person wants to open after a run, with the command that opens it."""
    python = sys.executable
    places = [
        ("report", workdir / "report" / "index.html", f"{python} -m webbrowser -t {{}}"),
        ("picture", workdir / "drive.png", f"{python} -m webbrowser -t {{}}"),
        ("submission", workdir / "submission.pkl", "ls -l {}"),
        ("checkpoints", workdir / "checkpoints", "ls {}"),
        ("TensorBoard", workdir / TENSORBOARD_FOLDER, f"{python} -m tensorboard.main --logdir {{}}"),
    ]
    needs = "" if find_spec("xprof") else f"{python} -m pip install 'recogdrive[profile]' && "
    view = f"{needs}{python} -m tensorboard.main --logdir {(workdir / TENSORBOARD_FOLDER).resolve()}"
    places += [
        ("profile", trace, f"{view}  # tab Profile, run {trace.name}")
        for trace in profiling.traces(workdir / TENSORBOARD_FOLDER)
    ]
    lines = [
        f"{name:<12} {path}\n{'':<12} {command.format(path.resolve())}"
        for name, path, command in places
        if path.exists()
    ]
    return "\n".join(["", *lines])


def _require_parent(composition: Composition, parent: Path | None) -> None:
    experiment = composition.experiment
    if experiment is not None and experiment.starts_from is not None and parent is None:
        raise ConfigurationError(
            f"{experiment.name} starts from the weights of {experiment.starts_from}: pass --gin_bindings "
            f"\"{experiment.parent_macro}='FOLDER'\" with the folder of such a run, or official weights."
        )
    if parent is not None and not parent.exists():
        origin = experiment.starts_from if experiment is not None else None
        macro = "PARENT" if experiment is None else experiment.parent_macro
        hint = f" Run --experiment={origin} first, or name" if origin else " Name"
        raise ConfigurationError(f"{macro}={str(parent)!r} does not exist.{hint} a run folder or official weights.")


def describe(composition: Composition) -> str:
    """What `--dry_run` prints: configuration, lineage, data found, weights, memory.

    Raises:
      ConfigurationError: The configuration cannot be built, or could not run on this machine's devices.
    """
    sections = [f"# Configuration of {composition.name}\n\n{composition.resolved().strip()}", _lineage(composition)]
    # An experiment this version cannot run may have no stage yet; what is configured is shown all the same.
    has_stage = "stage" in gin.get_bindings(run, resolve_references=False)
    try:
        description = build()[0].describe() if has_stage else Description()
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
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
