"""The command line as one of several processes."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from recogdrive.hosts.settings import VARIABLES, detect
from recogdrive.hosts.supervisor import MEMBER_VARIABLE, REASON_VARIABLE, supervise
from recogdrive.hosts.tpu_metadata import tpu_metadata


def supervised(
    flags: Mapping[str, str | int | None], close_record: Callable[[str], None], arguments: Sequence[str]
) -> int | None:
    """Runs the command as this host's part of a run of several processes; its exit code, or None where it is alone.

    A process that works under a supervisor already is told so by it, and goes on by itself.

    Args:
      flags: As `detect` takes them.
      close_record: As `supervise` takes it.
      arguments: Of the command.

    Raises:
      ConfigurationError: What says who this process is contradicts itself, or the processes did not come together.
    """
    if MEMBER_VARIABLE in os.environ:
        return None
    settings = detect(flags, os.environ, tpu_metadata)
    if settings.num_processes == 1:
        return None
    common = _without_own(arguments)
    return supervise(settings, [sys.executable, "-m", "recogdrive.main", *common], close_record, common)


def explain(reason: str) -> None:
    """Tells the supervisor why this process is about to fail, so that the others can say it; alone it has none."""
    number = os.environ.get(REASON_VARIABLE)
    if number is not None:
        with contextlib.suppress(OSError):
            os.write(int(number), json.dumps(reason[:4096]).encode() + b"\n")


def _without_own(arguments: Sequence[str]) -> list[str]:
    """Arguments without the flags that say which process this is: --name=value, -name=value or --name value."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        own = argument.startswith("-") and name in VARIABLES
        if not (skip or own):
            kept.append(argument)
        skip = own and not equals
    return kept
