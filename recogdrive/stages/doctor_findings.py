"""Findings of the doctor, and the report a person reads."""

import enum
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH = 110
_INDENT = " " * 11


class Level(enum.StrEnum):
    """How much a finding matters: FATAL makes every run impossible, WARNING some or slow, NOTE is good to know."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FATAL = "fatal"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      level: How much it matters.
      found: What was found.
      remedy: What to do about it; empty where nothing is to be done.
      area: Part of the machine.
    """

    level: Level
    found: str
    remedy: str = ""
    area: str = ""


def doctor_text(findings: Sequence[Finding]) -> str:
    """The report: a verdict, then every finding under its area with what to do."""
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    if count[Level.FATAL]:
        verdict = f"No experiment can run on this machine: {_plural(count[Level.FATAL], 'fatal finding')}."
    else:
        verdict = "This machine can run experiments."
    if count[Level.WARNING]:
        verdict += f" {_plural(count[Level.WARNING], 'warning')}: look at what is marked so."
    lines = [verdict]
    area = None
    for finding in findings:
        if finding.area != area:
            area = finding.area
            lines += ["", area]
        mark = finding.level.value if finding.level in (Level.OK, Level.NOTE) else finding.level.value.upper()
        lines += textwrap.wrap(
            finding.found, _WIDTH, initial_indent=f"  {mark:<9}", subsequent_indent=_INDENT, break_on_hyphens=False
        )
        lines += [f"{_INDENT}-> {line}" for line in finding.remedy.splitlines()]
    return "\n".join(lines)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
