"""Command line: `python -m recogdrive.main --experiment=NAME --workdir=DIR`."""

import functools
import logging as stdlib_logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

from recogdrive.experiment import ConfigurationError, find_experiment, format_registry, load_registry
from recogdrive.hosts.command import explain, supervised
from recogdrive.platforms import leave_out_absent_tpu
from recogdrive.run_folder import end_attempt

if TYPE_CHECKING:
    from recogdrive.composition import Composition

_EXPERIMENT = flags.DEFINE_string("experiment", None, "Name of a registered experiment; --list shows them.")
_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Gin file read after the experiment's own; repeatable.")
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "Gin statement that overrides the files, such as BATCH_SIZE=32; repeatable."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an interrupted run continues. Default: runs/NAME.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would run (configuration, data, weights, memory); run nothing."
)
_COMPILE_FOR = flags.DEFINE_string(
    "compile_for", None, "Print what the training step needs on TPU chips that are not here, such as v6e:2x4; "
    "run nothing."
)  # fmt: skip
_COMPILE_TIMING = flags.DEFINE_bool(
    "compile_timing", False, "With --compile_for: finish compiling, which takes minutes, for an estimate of the time."
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "A:B traces training steps A to B - 1, counted from 1 (10:13 are three steps), into "
    "WORKDIR/tensorboard for TensorBoard's tab Profile. B is not included and may be one more than the run has."
)  # fmt: skip
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, for a run of several processes that nothing else tells of."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the run has; see docs/hosts.md.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
_LIST = flags.DEFINE_bool("list", False, "Print the registered experiments and stop.")

BAD_REQUEST_EXIT_CODE = 2
DOES_NOT_FIT_EXIT_CODE = 3


def main(argv: list[str]) -> int:
    """Composes the experiment that the flags name and runs it; returns the process's exit code."""
    try:
        if len(argv) > 1:
            raise ConfigurationError(f"Unexpected argument {argv[1]!r}; every argument is a flag (see --help).")
        if _LIST.value:
            sys.stdout.write(format_registry(load_registry()) + "\n")
            return 0
        return _run()
    except ConfigurationError as error:
        explain(str(error))
        sys.stderr.write(f"error: {error}\n")
        return BAD_REQUEST_EXIT_CODE


def _run() -> int:
    experiment = find_experiment(_EXPERIMENT.value) if _EXPERIMENT.value is not None else None
    if experiment is not None and not _DRY_RUN.value:
        experiment.require_runnable()
    leave_out_absent_tpu()
    # From here on torch and jax are needed; --list and an unknown name are answered without them.
    workdir = Path(_WORKDIR.value or Path("runs") / (_EXPERIMENT.value or "custom"))
    if not _DRY_RUN.value and _COMPILE_FOR.value is None:
        who = {f.name: f.value for f in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
        if (exit_code := supervised(who, functools.partial(end_attempt, workdir), sys.argv[1:])) is not None:
            return exit_code
    from recogdrive.composition import compose
    from recogdrive.hosts import member
    from recogdrive.stages import base
    from recogdrive.training.profiling import StepRange

    try:
        profile_steps = None if _PROFILE_STEPS.value is None else StepRange.parse(_PROFILE_STEPS.value)
    except ValueError as error:
        raise ConfigurationError(f"--{error}") from error
    composition = compose(experiment, _GIN_FILE.value, _GIN_BINDINGS.value)
    if _DRY_RUN.value:
        sys.stdout.write(base.describe(composition) + "\n")
        return 0
    if _COMPILE_FOR.value is not None:
        return _compile(composition, workdir)
    logging.set_verbosity(logging.INFO)
    stdlib_logging.getLogger("jax").setLevel(stdlib_logging.WARNING)  # Else it tells of every accelerator it lacks.
    return member.run(lambda: base.execute(composition, workdir, profile_steps))


def _compile(composition: "Composition", workdir: Path) -> int:
    from recogdrive.ahead_of_time import estimate

    found = estimate.estimate(composition, _COMPILE_FOR.value, timing=_COMPILE_TIMING.value)
    saved = estimate.save(found, workdir)
    sys.stdout.write(f"{estimate.render(found)}\n\nsaved in {saved}\n")
    return 0 if found.fits else DOES_NOT_FIT_EXIT_CODE


def console_entry() -> None:
    """Entry point of the installed `recogdrive` command."""
    app.run(main)


if __name__ == "__main__":
    console_entry()
