"""Commands that a launch on other machines is made of: printed as a shell takes them, or run one after the other."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from recogdrive.experiment import ConfigurationError, find_experiment
from recogdrive.launch.shell import quoted


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
      title: What it is for.
      command: Program and arguments.
      standard_input: Text it reads; empty for none.
    """

    title: str
    command: Sequence[str]
    standard_input: str = ""

    def text(self) -> str:
        """The command as a shell takes it, each flag on a line of its own, under its title."""
        words = [quoted(word) for word in self.command]
        first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        lines = [" ".join(words[:first]), *words[first:]]
        text = " \\\n  ".join(lines)
        if self.standard_input:
            text += f" <<'END'\n{self.standard_input.rstrip()}\nEND"
        return f"# {self.title}\n{text}"


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of a launch, and behind `--` those of the run."""
    if "--" not in arguments:
        return list(arguments), []
    split = list(arguments).index("--")
    return list(arguments[:split]), list(arguments[split + 1 :])


def check_run_flags(flags: Sequence[str]) -> None:
    """Refuses flags of a run before anything is rented.

    Raises:
      ConfigurationError: No experiment and no gin file is named, or the experiment does not exist or run.
    """
    names = [flag.removeprefix("--experiment=") for flag in flags if flag.startswith("--experiment=")]
    if not names and not any(flag.startswith("--gin_file=") for flag in flags):
        raise ConfigurationError("Name what to run behind --, such as: ... -- --experiment=2b_il --workdir=runs/2b_il")
    for name in names:
        find_experiment(name).require_runnable()


def perform(steps: Sequence[Step], afterwards: Sequence[Step], *, print_only: bool) -> int:
    """Prints the steps, or runs them until one fails; ends with the commands for later.

    Args:
      steps: What the launch is made of.
      afterwards: What a person wants next: logs, deletion.
      print_only: Whether nothing is run.

    Returns:
      The exit code of the step that failed, or 0.

    Raises:
      ConfigurationError: A program is not installed.
    """
    for step in steps:
        sys.stdout.write(step.text() + "\n\n")
        sys.stdout.flush()
        if print_only:
            continue
        try:
            done = subprocess.run(step.command, input=step.standard_input or None, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"{step.command[0]} is not installed here; --print_only prints the commands for another machine."
            ) from error
        if done.returncode != 0:
            sys.stderr.write(f"error: this step failed with exit code {done.returncode}: {step.title}\n")
            return done.returncode
    sys.stdout.write("\n\n".join(step.text() for step in afterwards) + "\n")
    return 0


def with_print_only(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the flag and the closing words that launches on other machines share."""
    parser.add_argument("--print_only", action="store_true", help="print the commands; run nothing")
    parser.epilog = "Behind -- stand the flags of the run, as python -m recogdrive.main takes them."
    return parser
