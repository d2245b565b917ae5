"""Command line: `python -m recogdrive.launch.sweep FILE.toml` searches over knobs of an experiment."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.__main__ import BAD_REQUEST_EXIT_CODE, add_common_flags
from recogdrive.launch.board import Board
from recogdrive.launch.fleet import PREEMPTED_EXIT_CODE, Fleet, State
from recogdrive.launch.run_record import progress
from recogdrive.launch.schedule import SUMMARY_FILE, work_through, write_summary
from recogdrive.launch.shell import shell_line
from recogdrive.launch.slots import parse_slots
from recogdrive.launch.sweep_file import Sweep, read_sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the sweep file and runs its trials.

    Returns:
      0 if all trials ended and one gave its figure, 1 if none did, 75 if the sweep was stopped and can be continued, 2
      if the file is refused.
    """
    options = _parser().parse_args(arguments)
    try:
        sweep = read_sweep(options.file)
        slots = parse_slots(options.slots or sweep.slots or ["cpu"])
        if sweep.base.on not in (None, *(slot.kind for slot in slots)):
            raise ConfigurationError(f"The trials run on {sweep.base.on}, and no slot does; add one with --slots.")
        fleet = Fleet(sweep.base.workdir, slots, sweep.command)
        if options.print_only:
            sys.stdout.write(_planned_text(sweep, fleet) + "\n")
            return 0
        code = _run(sweep, fleet, retry_failed=options.retry_failed)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_REQUEST_EXIT_CODE
    if code == PREEMPTED_EXIT_CODE:
        again = sys.argv[1:] if arguments is None else arguments
        sys.stdout.write(f"go on with: {shlex.join(['python', '-m', 'recogdrive.launch.sweep', *again])}\n")
    return code


def _run(sweep: Sweep, fleet: Fleet, *, retry_failed: bool) -> int:
    try:
        from recogdrive.launch.study import SweepWork, open_study, write_results
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"A sweep needs {error.name}: pip install 'recogdrive[sweep]'.") from error
    with fleet:
        study = open_study(sweep)
        work = SweepWork(sweep, study, retry_failed=retry_failed)
        code = work_through(work, fleet, Board(lambda row: progress(row.run.workdir, fleet.log(row.run))))
        logs = {row.run.name: fleet.log(row.run) for row in work.rows}
        write_summary(fleet.root / SUMMARY_FILE, work.rows, logs)
        sys.stdout.write("\n".join(write_results(sweep, study)) + "\n")
    open_trials = any(row.state in (State.STOPPED, State.WAITING) for row in work.rows) or not work.over()
    gave = any(row.state in (State.FINISHED, State.DONE_BEFORE) for row in work.rows)
    return PREEMPTED_EXIT_CODE if open_trials else 0 if gave else code


def _planned_text(sweep: Sweep, fleet: Fleet) -> str:
    """Slots, space and the command of the first trial, its knobs left open."""
    lines = ["# Slots", ""]
    lines += [f"{slot.name}: {shell_line(fleet.slot_environment(slot), [])}".strip() for slot in fleet.slots]
    lines += ["", f"# {sweep.trials} trials over", ""]
    for name, knob in sweep.space.items():
        kind = " by factors" if knob.log else f" in steps of {knob.step}" if knob.step else ""
        values = f"one of {', '.join(map(str, knob.choices))}" if knob.choices else f"{knob.low} ... {knob.high}{kind}"
        lines.append(f"{name}: {values}")
    wanted = "most" if sweep.objective.maximize else "least"
    lines += ["", f"# for the {wanted} {sweep.objective.metric} of {sweep.objective.file}; each is", ""]
    flags = [f"--gin_bindings={name}=..." for name in sweep.space]
    lines.append(shell_line(sweep.base.env, [*fleet.command(sweep.run(0, {})), *flags]))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recogdrive.launch.sweep",
        description="Searches over knobs of an experiment with Optuna, trials in parallel over device slots; "
        "docs/launching.md.",
    )
    add_common_flags(parser)
    parser.add_argument("--retry_failed", action="store_true", help="try values again whose trial failed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
