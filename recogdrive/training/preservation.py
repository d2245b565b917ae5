"""Which checkpoints are kept, the newest and the best besides, and how the others go."""

import shutil
import threading
from pathlib import Path

import jax
from absl import logging

from recogdrive.training.saved import LOOP, read_json, saved_steps

_DISCARDED = "discarded-"
"""Start of the name that a checkpoint takes when it is no longer kept, before its files are deleted."""


class Preservation:
    """Keeps the `keep_last` newest checkpoints of a folder and, given a metric, the `keep_best` best by it as well.

    A checkpoint that is not kept is renamed at once and its files are deleted in the background, so that a run killed
    meanwhile leaves either a whole checkpoint or something that no longer passes for one. Both are dealt with when the
    run is started again; nothing is ever deleted that had not been chosen here.

    Args:
      folder: The folder of checkpoints.
      keep_last: How many of the newest are kept.
      best_metric: Metric by which the best are kept as well; None keeps none for its score.
      best_mode: "min" or "max".
      keep_best: How many of the best are kept.

    Raises:
      ValueError: An argument out of range.
    """

    def __init__(self, folder: Path, keep_last: int, best_metric: str | None, best_mode: str, keep_best: int) -> None:
        if keep_last < 1 or keep_best < 1:
            raise ValueError(f"keep_last={keep_last} and keep_best={keep_best} must be at least 1.")
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode={best_mode!r} must be 'min' or 'max'.")
        self._folder = folder
        self._keep_last = keep_last
        self._best_metric = best_metric
        self._best_mode = best_mode
        self._keep_best = keep_best
        self._deletion: threading.Thread | None = None

    def superseded(self) -> list[int]:
        """Steps whose checkpoints are not kept, oldest first."""
        steps = saved_steps(self._folder)
        kept = set(steps[-self._keep_last :])
        if self._best_metric is not None:
            # Scores come from the checkpoints themselves: a restarted run remembers no other.
            scores = {step: score for step in steps if (score := self._score(step)) is not None}
            sign = 1 if self._best_mode == "max" else -1
            # Of equal ones the newest counts as the best.
            kept.update(sorted(scores, key=lambda step: (sign * scores[step], step))[-self._keep_best :])
        return [step for step in steps if step not in kept]

    def _score(self, step: int) -> float | None:
        try:
            return (read_json(self._folder / str(step), LOOP)["metrics"] or {}).get(self._best_metric)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # A damaged one, which nothing can be restored from.

    def prune(self) -> None:
        """Lets go of the checkpoints that are not kept; their files are deleted in the background."""
        self.wait()
        discarded = []
        for step in self.superseded() if jax.process_index() == 0 else []:
            target = self._folder / f"{_DISCARDED}{step}"
            try:
                (self._folder / str(step)).rename(target)
            except OSError as error:
                logging.error("the checkpoint of step %d in %s could not be discarded: %s", step, self._folder, error)
                continue
            discarded.append(target)
        if discarded:
            self._deletion = threading.Thread(target=_delete, args=(discarded,), name="delete_checkpoints")
            self._deletion.start()

    def remove_leftovers(self) -> None:
        """Deletes what was chosen for deletion by a run that was killed before it had done so."""
        if jax.process_index() == 0:
            leftovers = sorted(self._folder.glob(f"{_DISCARDED}*"))
            for path in leftovers:
                logging.info("removing the rest of a discarded checkpoint: %s", path)
            _delete(leftovers)

    def wait(self) -> None:
        """Waits for the deletion under way."""
        if self._deletion is not None:
            self._deletion.join()
            self._deletion = None


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:  # Costs disk space only; the next start tries again.
            logging.error("the discarded checkpoint %s could not be deleted: %s", folder, error)
