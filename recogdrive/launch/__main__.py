"""Command line: `python -m recogdrive.launch FILE.toml` runs the experiments of a launch file."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.board import Board
from recogdrive.launch.fleet import Fleet, Progress, State
from recogdrive.launch.plan import read_plan
from recogdrive.launch.run_record import progress, was_started
from recogdrive.launch.schedule import SUMMARY_FILE, PlannedWork, work_through, write_summary
from recogdrive.launch.shell import shell_line
from recogdrive.launch.slots import parse_slots

BAD_REQUEST_EXIT_CODE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the launch file and works through it; returns the process's exit code."""
    options = _parser().parse_args(arguments)
    try:
        plan = read_plan(options.file)
        slots = parse_slots(options.slots or plan.slots or ["cpu"])
        work = PlannedWork(plan.runs, [slot.kind for slot in slots])
        fleet = Fleet(plan.root, slots, plan.command)
        if options.print_only:
            sys.stdout.write(planned_text(work.rows, fleet) + "\n")
            return 0
        with fleet:
            code = work_through(work, fleet, Board(lambda row: progress(row.run.workdir, fleet.log(row.run))))
            write_summary(plan.root / SUMMARY_FILE, work.rows, {row.run.name: fleet.log(row.run) for row in work.rows})
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_REQUEST_EXIT_CODE
    sys.stdout.write(f"logs and summary: {plan.root / 'logs'}, {plan.root / SUMMARY_FILE}\n")
    if code == 1:
        failed = [str(fleet.log(row.run)) for row in work.rows if row.state is State.FAILED]
        sys.stdout.write(f"look at what failed: tail -n 40 {shlex.join(failed)}\n")
    if code != 0:
        again = shlex.join(["python", "-m", "recogdrive.launch", *(sys.argv[1:] if arguments is None else arguments)])
        sys.stdout.write(f"the same command goes on where this ended: {again}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recogdrive.launch",
        description="Runs the experiments of a launch file in parallel over device slots; docs/launching.md.",
    )
    add_common_flags(parser)
    return parser


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that launches and sweeps share."""
    parser.add_argument("file", type=Path, metavar="FILE.toml")
    parser.add_argument(
        "--slots",
        action="append",
        metavar="SLOTS",
        help="where runs go, over the file's: cpu, cpu:4 (virtual devices), cpu*2 (two slots), gpu:0, gpu:0+1 (two "
        "GPUs for one run), gpu:all, tpu, tpu:0; commas between, or repeat the flag",
    )
    parser.add_argument("--print_only", action="store_true", help="print slots and commands; run nothing")


def planned_text(rows: Sequence[Progress], fleet: Fleet) -> str:
    """What `--print_only` prints: slots with their environments, then each run with its command."""
    lines = ["# Slots", ""]
    for slot in fleet.slots:
        lines.append(f"{slot.name}: {shell_line(fleet.slot_environment(slot), []).strip()}")
    lines += ["", "# Runs", ""]
    for row in rows:
        notes = [row.state.value if row.state is State.DONE_BEFORE else "continues" if was_started(row.run) else "new"]
        notes += [f"after {', '.join(row.run.after)}"] if row.run.after else []
        notes += [f"on {row.run.on}"] if row.run.on else []
        notes += [row.note] if row.note else []
        lines += [f"# {row.run.name}: {'; '.join(notes)}", shell_line(row.run.env, fleet.command(row.run)), ""]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(main())
