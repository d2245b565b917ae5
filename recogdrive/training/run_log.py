"""What a run tells while it trains: loss curve, TensorBoard, progress, where its time goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from recogdrive.training.goodput import GoodputFile
from recogdrive.training.metrics_file import METRICS_FILE, MetricsFile
from recogdrive.training.summary import TENSORBOARD_FOLDER, EventWriter, Progress
from recogdrive.training.time_account import TimeAccount


class RunLog:
    """Writes to the run folder and the terminal; with several processes the lead alone does.

    Args:
      workdir: Run folder.
      steps: Length of the run.
      done: Updates done when it starts.
      is_continued: Whether there was a checkpoint; a run that begins anew keeps nothing of one that was killed before
        its first.
      account: Of the run's time.
    """

    def __init__(self, workdir: Path, steps: int, done: int, *, is_continued: bool, account: TimeAccount) -> None:
        self._is_lead = jax.process_index() == 0
        self._progress = Progress(steps, done, visible=self._is_lead)
        if self._is_lead:
            kept_until = done if is_continued else -1
            self._metrics = MetricsFile(workdir / METRICS_FILE, kept_until)
            self._events = EventWriter(workdir / TENSORBOARD_FOLDER, kept_until)
            self._goodput = GoodputFile(workdir, account, done)

    def advance(self) -> None:
        """One step more."""
        self._progress.advance()

    def window(self, step: int, values: Mapping[str, float], perf: Mapping[str, float]) -> None:
        """Tells of the steps since the last log line.

        Args:
          step: Updates done.
          values: Metrics, the same in every run of this configuration.
          perf: Timings, which are not.
        """
        if not self._is_lead:
            return
        self._metrics.write({"step": step, **values, "perf": dict(perf)})
        self._events.scalars(step, {f"train/{name}": value for name, value in values.items()})
        self._events.scalars(step, {f"perf/{name}": value for name, value in perf.items()})
        # Details, grouped by a slash, are for TensorBoard; a line has room for the rest.
        shown = {name: value for name, value in values.items() if "/" not in name}
        self._progress.report(step, {**shown, "samples_per_s": perf["samples_per_s"]})
        self._goodput.note(step)

    def evaluation(
        self, step: int, scores: Mapping[str, float], results: Mapping[str, Any], perf: Mapping[str, float]
    ) -> None:
        """Tells of an evaluation.

        Args:
          step: Updates done.
          scores: Scalars of `results`, by the names they are logged under.
          results: What the evaluation returned; TensorBoard has texts and pictures too.
          perf: Timings.
        """
        if not self._is_lead:
            return
        self._metrics.write({"step": step, **scores, "perf": dict(perf)})
        self._events.results(step, "eval", results)
        self._progress.report(step, scores)

    def flush(self) -> None:
        """Makes what is written as durable as the checkpoint about to be saved."""
        if self._is_lead:
            self._metrics.flush_to_disk()
            self._events.flush()

    def note_time(self, step: int) -> None:
        """Puts the account of the run's time on disk.

        Args:
          step: Updates done.
        """
        if self._is_lead:
            self._goodput.note(step)

    def close(self) -> None:
        """Ends progress bar, curve and events; the account of the time may still be put on disk."""
        self._progress.close()
        if self._is_lead:
            self._metrics.close()
            self._events.close()
