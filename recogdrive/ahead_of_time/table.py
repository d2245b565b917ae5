"""The table of docs/tpu.md: `python -m recogdrive.ahead_of_time.table --folder=FOLDER --write`."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import app, flags, logging

from recogdrive.ahead_of_time.chips import GIB
from recogdrive.ahead_of_time.estimate import Estimate, estimate
from recogdrive.composition import compose
from recogdrive.experiment import ConfigurationError, find_experiment

_FOLDER = flags.DEFINE_string(
    "folder", "runs/compile_table", "Where estimates are kept; those there are not made anew."
)
_TIMING = flags.DEFINE_bool("timing", False, "Also estimate the time, which takes minutes a line.")
_ONLY = flags.DEFINE_string("only", "", "Regular expression; lines whose name it does not find are not compiled.")
_DOCS = flags.DEFINE_string("docs", "docs/tpu.md", "File whose table is written.")
_WRITE = flags.DEFINE_bool("write", False, "Write the table into the docs; else print it.")

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
TOPOLOGIES = {"v6e_4": "v6e:2x2", "v6e_8": "v6e:2x4", "v5p_8": "v5p:2x2x1", "v6e_256": "v6e:16x16"}
RL_BATCH_SIZE = 64
"""Scenes of the recipe's batch; on more chips a line has a scene for each."""
_CHIPS = {"v6e_4": 4, "v6e_8": 8, "v5p_8": 4, "v6e_256": 256}


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      name: Of its file.
      experiment: What is compiled.
      machine: Key of `TOPOLOGIES`, and of `gin/runtime/tpu_<machine>.gin`.
      files: Gin files after the experiment's own.
      bindings: Statements after these.
      note: What differs from the experiment.
    """

    name: str
    experiment: str
    machine: str
    files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()
    note: str = ""


def lines() -> list[Line]:
    """What the table holds."""
    found = []
    for machine in TOPOLOGIES:
        for size in ("2b", "8b"):
            found.append(_fine_tuning(size, machine))
            found += [Line(f"{size}_il_{machine}", f"{size}_il", machine), _reinforcement(size, machine)]
    more = [_fine_tuning("2b", "v6e_4", rows_a_chip=2), _fine_tuning("2b", "v6e_4", rows_a_chip=4)]
    return [*found, *more, _fine_tuning("8b", "v6e_8", rows_a_chip=2)]


def _fine_tuning(size: str, machine: str, rows_a_chip: int = 1) -> Line:
    note = "4,096 tokens, 13 tiles"
    return Line(
        f"{size}_sft_{machine}" + (f"_rows_{rows_a_chip}" if rows_a_chip > 1 else ""),
        f"{size}_sft",
        machine,
        ("gin/option/rows_of_4096.gin",),
        (f"BATCH_SIZE={rows_a_chip * _CHIPS[machine]}",),
        note + (f", {rows_a_chip} rows a chip" if rows_a_chip > 1 else ""),
    )


def _reinforcement(size: str, machine: str) -> Line:
    name, experiment, chips = f"{size}_rl_{machine}", f"{size}_rl", _CHIPS[machine]
    if chips <= RL_BATCH_SIZE:
        return Line(name, experiment, machine)
    return Line(name, experiment, machine, bindings=(f"BATCH_SIZE={chips}",), note=f"{chips} scenes")


def make(line: Line, folder: Path, *, timing: bool) -> None:
    """Compiles a line unless its estimate is there; a refusal is kept as its message."""
    path = folder / f"{line.name}.json"
    if path.exists() and (not timing or json.loads(path.read_text()).get("timing")):
        return
    try:
        found = compiled(line, timing=timing)
    except ConfigurationError as error:
        logging.warning("%s: %s", line.name, error)
        path.write_text(json.dumps({"kind": "compiler estimate", "refused": str(error)}, indent=1) + "\n")
        return
    path.write_text(found.to_json() + "\n")


def compiled(line: Line, *, timing: bool = False) -> Estimate:
    """The estimate of a line, made anew.

    Raises:
      ConfigurationError: It cannot be compiled.
    """
    experiment = find_experiment(line.experiment)
    experiment.require_runnable()
    files = [*line.files, f"gin/runtime/tpu_{line.machine}.gin"]
    return estimate(compose(experiment, files, list(line.bindings)), TOPOLOGIES[line.machine], timing=timing)


def render(found: Sequence[Line], folder: Path) -> str:
    """The table in Markdown, of the estimates that are there."""
    heads = [
        "experiment", "chips", "rows", "weights", "optimiser", "batch", "temporaries", "HBM", "of", "sent", "step",
        "MFU",
    ]  # fmt: skip
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    compilers = set()
    for line in found:
        path = folder / f"{line.name}.json"
        if not path.exists():
            continue
        entry = json.loads(path.read_text())
        name = line.experiment + (f" ({line.note})" if line.note else "")
        chips = f"{line.machine.replace('_', '-')} ({TOPOLOGIES[line.machine]})"
        if "refused" in entry:
            cells = dict.fromkeys(heads[2:], "-") | {"HBM": entry["refused"].rpartition(": ")[2]}
            rows.append(" | ".join([f"| {name}", chips, *cells.values()]) + " |")
            continue
        compilers.add(entry["compiler"])
        held = entry["hbm_bytes"]
        timing = entry["timing"]
        cells = [
            name,
            chips,
            f"{entry['rows']}",
            *(f"{held[kind] / GIB:.2f}" for kind in ("weights", "optimizer", "batch", "temporaries")),
            f"**{entry['total_bytes'] / GIB:.2f}**" + ("" if entry["fits"] else " does not fit"),
            f"{entry['limit_bytes'] / GIB:.2f}",
            f"{sum(entry['sent_bytes'].values()) / 1e9:.2f}",
            "" if timing is None else f"{timing['step_s'][0]:.3f} - {timing['step_s'][1]:.3f}",
            "" if timing is None else f"{timing['mfu'][0]:.0%} - {timing['mfu'][1]:.0%}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    head = (
        f"Compiler estimate by {', '.join(sorted(compilers)) or 'nothing yet'}; GiB a chip, GB sent a chip and step, s."
    )
    return "\n".join([head, "", *rows])


def write(table: str, docs: Path) -> None:
    """Puts the table between the marks of a page.

    Raises:
      ConfigurationError: The page has no marks.
    """
    text = docs.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ConfigurationError(f"{docs} lacks the marks {BEGIN} and {END}.")
    replaced = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)
    docs.write_text(replaced, encoding="utf-8")


def main(argv: list[str]) -> int:
    """Compiles what is missing and shows the table."""
    del argv
    folder = Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    for line in lines():
        if re.search(_ONLY.value, line.name):
            make(line, folder, timing=_TIMING.value)
    table = render(lines(), folder)
    if _WRITE.value:
        write(table, Path(_DOCS.value))
    else:
        sys.stdout.write(table + "\n")
    return 0


if __name__ == "__main__":
    app.run(main)
