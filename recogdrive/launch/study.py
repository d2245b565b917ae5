"""The trials of a sweep as runs of the launcher; Optuna keeps them in one SQLite file and says what to try next."""

import csv
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.fleet import Fleet, Progress, State
from recogdrive.launch.run_record import is_done, read_json, read_metrics, without_comments
from recogdrive.launch.sweep_file import Knob, Objective, Pruning, Sweep, statements
from recogdrive.run_folder import write_text

STUDY_FILE = "study.db"
_WATCH_EVERY_S = 1.0
_ENDED = {
    TrialState.COMPLETE: State.DONE_BEFORE,
    TrialState.PRUNED: State.PRUNED,
    TrialState.FAIL: State.FAILED,
}


def open_study(sweep: Sweep) -> optuna.Study:
    """The study in the sweep's folder; made if absent.

    Raises:
      ConfigurationError: It holds trials of another experiment, other settings or the other direction.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = sweep.base.workdir / STUDY_FILE
    study = optuna.create_study(
        storage=f"sqlite:///{path.resolve()}",
        study_name="sweep",
        load_if_exists=True,
        direction="maximize" if sweep.objective.maximize else "minimize",
    )
    # Another sequence than that of the trials there are: the same seed would propose the same values again.
    seed = sweep.seed + len(study.get_trials(deepcopy=False))
    study.sampler = (
        optuna.samplers.RandomSampler(seed=seed)
        if sweep.sampler == "random"
        else optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    )
    study.pruner = _pruner(sweep.pruning)
    objective = sweep.objective
    identity = {
        "configuration": without_comments(sweep.base.configuration()),
        "choices": {name: list(knob.choices) for name, knob in sweep.space.items() if knob.choices},
        "objective": [objective.metric, objective.file, objective.maximize, objective.best],
    }
    for name, value in identity.items():
        before = study.user_attrs.get(name)
        if before is not None and before != value:
            raise ConfigurationError(
                f"{path} holds trials with another {name}, which cannot be compared; take another workdir, or delete "
                f"{sweep.base.workdir}."
            )
        study.set_user_attr(name, value)
    return study


def _pruner(pruning: Pruning | None) -> optuna.pruners.BasePruner:
    if pruning is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=pruning.startup_trials, n_warmup_steps=pruning.warmup_steps)


def distribution(knob: Knob) -> optuna.distributions.BaseDistribution:
    """A knob as Optuna knows it."""
    if knob.choices:
        return optuna.distributions.CategoricalDistribution(knob.choices)
    if isinstance(knob.low, int) and isinstance(knob.high, int) and isinstance(knob.step, int | None):
        return optuna.distributions.IntDistribution(knob.low, knob.high, log=knob.log, step=knob.step or 1)
    return optuna.distributions.FloatDistribution(knob.low, knob.high, log=knob.log, step=knob.step)


def read_objective(workdir: Path, objective: Objective) -> float:
    """The figure of a finished run.

    Raises:
      ValueError: It is not there, or no finite number; names those that are.
    """
    if objective.file == "summary.json":
        summary = read_json(workdir / objective.file)
        agent, _, name = objective.metric.partition("/")
        figures = {f"{a}/{m}": v for a, metrics in (summary or {}).items() for m, v in metrics.items()}
        values = [figures[f"{agent}/{name}"]] if f"{agent}/{name}" in figures else []
        known = list(figures)
    else:
        records = read_metrics(workdir)
        values = [record[objective.metric] for record in records if objective.metric in record]
        known = sorted({name for record in records for name in record} - {"perf", "step"})
    if not values:
        raise ValueError(f"{objective.file} has no {objective.metric}; it has {', '.join(known[:12]) or 'nothing'}")
    value = values[-1] if not objective.best else max(values) if objective.maximize else min(values)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{objective.metric} is {value!r}, no finite number")
    return float(value)


class SweepWork:
    """Trials: those that were interrupted first, then new ones, as many as slots take.

    Args:
      sweep: What is searched.
      study: Of its folder.
      retry_failed: Whether trials that failed are tried once more, with the same values.
    """

    def __init__(self, sweep: Sweep, study: optuna.Study, *, retry_failed: bool = False) -> None:
        self._sweep = sweep
        self._study = study
        self._space = {name: distribution(knob) for name, knob in sweep.space.items()}
        self._numbers: dict[str, int] = {}
        self._reported: dict[str, set[int]] = {}
        self._pruned: dict[str, int] = {}
        self._watched = 0.0
        self.rows: list[Progress] = []
        again = []
        for trial in study.get_trials():
            row = self._row(trial)
            if trial.state is TrialState.FAIL and retry_failed:
                again.append(trial.params)
                row.note = "tried again"
            elif trial.state in _ENDED:
                row.state, row.note = _ENDED[trial.state], self._described(trial)
            elif trial.state is TrialState.WAITING:
                self.rows.remove(row)
            elif trial.params.keys() != self._space.keys():
                # Killed between a trial's making and its values, or a knob came or went.
                study.tell(trial.number, state=TrialState.FAIL)
                row.state, row.note = State.FAILED, "has not the knobs of this file"
            elif is_done(row.run):
                row.state = State.FINISHED
                self._tell(row)
        for values in again:
            study.enqueue_trial(values)
        self._left = sweep.trials - sum(1 for row in self.rows if row.note != "tried again")

    def _row(self, trial: FrozenTrial | optuna.Trial) -> Progress:
        row = Progress(self._sweep.run(trial.number, trial.params))
        self._numbers[row.run.name] = trial.number
        self.rows.append(row)
        if isinstance(trial, FrozenTrial):
            self._reported[row.run.name] = set(trial.intermediate_values)
            if trial.state is TrialState.FAIL:
                row.state = State.FAILED
        return row

    def next(self, fleet: Fleet) -> Progress | None:
        """An interrupted trial, or a new one whose values Optuna chooses knowing all that ended."""
        if fleet.free_slot(self._sweep.base.on) is None:
            return None
        waiting = next((row for row in self.rows if row.state is State.WAITING), None)
        if waiting is not None or self._left <= 0:
            return waiting
        self._left -= 1
        return self._row(self._study.ask(self._space))

    def ended(self, row: Progress) -> list[Progress]:
        """Tells Optuna how a trial went; one that was stopped on request stays open and is continued next time."""
        self._report(row)
        if row.run.name in self._pruned and row.state in (State.STOPPED, State.FINISHED):
            row.state, row.note = State.PRUNED, f"at step {self._pruned[row.run.name]}"
        if row.state is not State.STOPPED:
            self._tell(row)
        return []

    def _tell(self, row: Progress) -> None:
        number = self._numbers[row.run.name]
        if row.state is State.FINISHED:
            try:
                self._study.tell(number, read_objective(row.run.workdir, self._sweep.objective))
            except ValueError as error:
                row.state, row.note = State.FAILED, str(error)
        if row.state is State.PRUNED:
            self._study.tell(number, state=TrialState.PRUNED)
        if row.state is State.FAILED:
            self._study.tell(number, state=TrialState.FAIL)
        said = self._described(self._trial(number))
        row.note = f"{said} ({row.note})" if row.note else said

    def watch(self, fleet: Fleet) -> None:
        """Reports curves of running trials and stops those that are worse than the others were."""
        if self._sweep.pruning is None or time.monotonic() - self._watched < _WATCH_EVERY_S:
            return
        self._watched = time.monotonic()
        for row in fleet.running:
            name = row.run.name
            if name not in self._pruned and (step := self._report(row)) is not None:
                self._pruned[name] = step
                fleet.signal(signal.SIGTERM, name)

    def _report(self, row: Progress) -> int | None:
        """Hands new points of a curve to Optuna; returns the step at which it would stop the trial, if it would."""
        pruning = self._sweep.pruning
        if pruning is None:
            return None
        number = self._numbers[row.run.name]
        trial = optuna.Trial(self._study, self._trial(number)._trial_id)
        reported = self._reported.setdefault(row.run.name, set())
        for record in read_metrics(row.run.workdir):
            step, value = record.get("step"), record.get(pruning.metric)
            if value is None or step in reported:
                continue
            trial.report(value, step)
            reported.add(step)
            if trial.should_prune():
                return step
        return None

    def over(self) -> bool:
        """Whether all trials there shall be were started."""
        return self._left <= 0 and not any(row.state is State.WAITING for row in self.rows)

    def _trial(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _described(self, trial: FrozenTrial) -> str:
        knobs = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.params.items()]
        return "  ".join([*([] if trial.value is None else [f"{trial.value:.5g}"]), *knobs])


def write_results(sweep: Sweep, study: optuna.Study) -> list[str]:
    """Writes `trials.csv` and, if a trial gave a figure, `best.gin`; returns the lines to end with."""
    folder = sweep.base.workdir
    trials = study.get_trials(deepcopy=False)
    with (folder / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", sweep.objective.metric, *sweep.space])
        for trial in trials:
            knobs = [trial.params.get(name, "") for name in sweep.space]
            table.writerow([trial.number, trial.state.name.lower(), "" if trial.value is None else trial.value, *knobs])
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not complete:
        return [f"no trial gave {sweep.objective.metric}; all of them: {folder / 'trials.csv'}"]
    best = study.best_trial
    lines = [f"# {sweep.objective.metric} {best.value:.6g}: trial {best.number} of {len(trials)}", *_lines(best.params)]
    write_text(folder / "best.gin", "\n".join(lines) + "\n")
    return [
        f"best of {len(complete)} complete trials: {sweep.objective.metric} {best.value:.6g} of {best.number:04d} with "
        + " ".join(statements(best.params)),
        f"its knobs as a gin file: --gin_file={folder / 'best.gin'}; all trials: {folder / 'trials.csv'}",
    ]


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [statement.replace("=", " = ", 1) for statement in statements(values)]
