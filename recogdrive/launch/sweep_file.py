"""A sweep file: one experiment, the knobs that are searched over, and the figure they are judged by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.plan import (
    Run,
    check_keys,
    gin_value,
    read_bindings,
    read_env,
    read_text,
    read_texts,
    read_toml,
    with_dots,
)
from recogdrive.launch.slots import KINDS
from recogdrive.suggestions import did_you_mean

_FILE_KEYS = (
    *("workdir", "slots", "command", "experiment", "gin_files", "bindings", "env", "on"),
    *("trials", "seed", "sampler", "objective", "space", "pruning"),
)
SAMPLERS = ("tpe", "random")
FILES = ("summary.json", "metrics.jsonl")


@dataclass(frozen=True)
class Knob:
    """What a macro or binding may be.

    Attributes:
      choices: Values to choose from; empty for a range.
      low: Least value; the range is of whole numbers if both ends are.
      high: Greatest value.
      log: Whether every factor is as likely as every other, rather than every difference.
      step: Distance between neighbours; None for any.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Objective:
    """The figure that a trial is judged by.

    Attributes:
      metric: `agent/metric` of summary.json, or a name of metrics.jsonl (`eval/pdms`).
      file: Where it stands.
      maximize: Whether more is better.
      best: Of metrics.jsonl, whether the best of the curve counts rather than its last point.
    """

    metric: str
    file: str
    maximize: bool
    best: bool


@dataclass(frozen=True)
class Pruning:
    """When a trial that does badly is stopped: its best so far is worse than the median of the others at that step.

    Attributes:
      metric: A name of metrics.jsonl.
      startup_trials: Trials that run to their end before any is stopped.
      warmup_steps: Step up to which none is stopped.
    """

    metric: str
    startup_trials: int
    warmup_steps: int


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
      base: The run without its knobs; its folder is that of the sweep.
      space: Macro or binding -> what it may be.
      objective: What is sought.
      trials: How many are run in all.
      seed: Of the search.
      sampler: "tpe" learns from earlier trials, "random" does not.
      pruning: None to let every trial run to its end.
      slots: As written.
      command: As in a launch file.
    """

    base: Run
    space: Mapping[str, Knob]
    objective: Objective
    trials: int
    seed: int
    sampler: str
    pruning: Pruning | None
    slots: tuple[str, ...]
    command: tuple[str, ...]

    def run(self, number: int, values: Mapping[str, Any]) -> Run:
        """The run of one trial.

        Args:
          number: Of the trial, from 0 on.
          values: Macro or binding -> value.
        """
        name = f"trial_{number:04d}"
        return replace(
            self.base,
            name=name,
            workdir=self.base.workdir / name,
            bindings=(*self.base.bindings, *statements(values)),
        )


def statements(values: Mapping[str, Any]) -> list[str]:
    """Gin statements that set knobs."""
    return [f"{name}={gin_value(value, name)}" for name, value in values.items()]


def read_sweep(path: Path) -> Sweep:
    """Reads and checks a sweep file; docs/launching.md says what stands in one.

    Raises:
      ConfigurationError: It cannot be read, a key or value is none that is known, or a knob is no macro of the
        experiment.
    """
    content = read_toml(path)
    where = str(path)
    check_keys(content, _FILE_KEYS, where)
    on = read_text(content, "on", None, where)
    if on is not None and on not in KINDS:
        raise ConfigurationError(f"{where}: on={on!r} must be a kind of slot: {', '.join(KINDS)}.")
    base = Run(
        name=path.stem,
        experiment=read_text(content, "experiment", None, where),
        workdir=Path(read_text(content, "workdir", f"runs/{path.stem}", where)),
        gin_files=tuple(read_texts(content, "gin_files", where)),
        bindings=read_bindings(content, where),
        on=on,
        env=read_env(content, where),
    )
    macros = base.check_macros()
    space = with_dots(_table(content, "space", where))
    if not space:
        raise ConfigurationError(f"{where} has no [space]; it names the knobs: LEARNING_RATE = {{ low = 1e-5, ... }}.")
    for name in space:
        if "." not in name and name not in macros:
            raise ConfigurationError(f"{where}: the experiment has no macro {name!r}.{did_you_mean(name, macros)}")
    objective = _read_objective(_table(content, "objective", where), where)
    return Sweep(
        base=base,
        space={name: _read_knob(name, knob, where) for name, knob in space.items()},
        objective=objective,
        trials=_whole(content, "trials", 20, 1, where),
        seed=_whole(content, "seed", 0, 0, where),
        sampler=_one_of(content, "sampler", SAMPLERS, where),
        pruning=_read_pruning(content, objective, where),
        slots=tuple(read_texts(content, "slots", where)),
        command=tuple(read_texts(content, "command", where)),
    )


def _read_knob(name: str, knob: Any, where: str) -> Knob:
    if isinstance(knob, list):
        knob = {"choices": knob}
    if not isinstance(knob, dict):
        raise ConfigurationError(f"{where}: {name} = {knob!r} must be a range {{ low, high }} or a list of choices.")
    check_keys(knob, ("choices", "low", "high", "log", "step"), f"{where}, {name}")
    if "choices" in knob:
        choices = knob["choices"]
        if len(knob) > 1 or not isinstance(choices, list) or len(choices) < 2:
            raise ConfigurationError(f"{where}: {name} must list at least two choices, and nothing else.")
        if not all(isinstance(choice, (bool, int, float, str)) for choice in choices):
            raise ConfigurationError(f"{where}: choices of {name} must be numbers, texts, true or false.")
        return Knob(choices=tuple(choices))
    low, high, step, log = knob.get("low"), knob.get("high"), knob.get("step"), knob.get("log", False)
    ends = [low, high, *([] if step is None else [step])]
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends):
        raise ConfigurationError(f"{where}: {name} needs numbers low and high, or choices.")
    if not low < high or (step is not None and step <= 0) or (log and low <= 0) or not isinstance(log, bool):
        raise ConfigurationError(f"{where}: {name} needs low < high, a positive step, and low > 0 where log = true.")
    if log and step is not None:
        raise ConfigurationError(f"{where}: {name} cannot have both log and step.")
    return Knob(low=low, high=high, log=log, step=step)


def _read_objective(table: Mapping[str, Any], where: str) -> Objective:
    check_keys(table, ("metric", "file", "direction", "take"), f"{where}, objective")
    metric = read_text(table, "metric", None, f"{where}, objective")
    file = _one_of(table, "file", FILES, where)
    if not metric or (file == FILES[0] and "/" not in metric):
        raise ConfigurationError(
            f"{where}: objective.metric={metric!r} must name a figure: 'planner/pdms' of summary.json (agent/metric), "
            "or with file = 'metrics.jsonl' one of its names, such as 'eval/pdms'."
        )
    if "direction" not in table:
        raise ConfigurationError(f"{where}: objective.direction must say 'maximize' or 'minimize'.")
    maximize = _one_of(table, "direction", ("maximize", "minimize"), where) == "maximize"
    return Objective(metric, file, maximize, _one_of(table, "take", ("last", "best"), where) == "best")


def _read_pruning(content: Mapping[str, Any], objective: Objective, where: str) -> Pruning | None:
    if "pruning" not in content:
        return None
    table = _table(content, "pruning", where)
    check_keys(table, ("metric", "startup_trials", "warmup_steps"), f"{where}, pruning")
    metric = read_text(table, "metric", objective.metric if objective.file == FILES[1] else None, where)
    if metric is None:
        raise ConfigurationError(f"{where}: pruning.metric must name a figure of metrics.jsonl, such as 'eval/pdms'.")
    startup = _whole(table, "startup_trials", 4, 1, where)
    return Pruning(metric, startup, _whole(table, "warmup_steps", 0, 0, where))


def _table(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where}: {key} must be a table: [{key}].")
    return table


def _whole(content: Mapping[str, Any], key: str, default: int, least: int, where: str) -> int:
    value = content.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{where}: {key}={value!r} must be a whole number from {least} on.")
    return value


def _one_of(content: Mapping[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    value = content.get(key, known[0])
    if value not in known:
        raise ConfigurationError(f"{where}: {key}={value!r} must be one of {', '.join(known)}.")
    return value
