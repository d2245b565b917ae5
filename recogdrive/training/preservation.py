"""Which checkpoints are kept: the newest ones, and the best ones besides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orbax.checkpoint.checkpoint_managers import preservation_policy

from recogdrive.training.saved import LOOP, read_json


@dataclass(frozen=True)
class _ScoredStep:
    """What a preservation policy sees of a checkpoint."""

    step: int
    time: datetime
    metrics: Mapping[str, float] | None


@dataclass(frozen=True)
class _BestByScoreOnDisk(preservation_policy.PreservationPolicy):
    """Keeps the best by the scores in the checkpoints themselves.

    Orbax remembers scores in memory only when a preservation policy is set: after a restart it would take every older
    checkpoint for one without a score and delete the best.
    """

    folder: Path
    policy: preservation_policy.BestN

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        """Whether to keep each checkpoint; those without a score are left to the other policies."""
        known = [_ScoredStep(info.step, info.time, info.metrics or self._score(info.step)) for info in checkpoints]
        return self.policy.should_preserve(known, context=context)

    def _score(self, step: int) -> Mapping[str, float] | None:
        try:
            return read_json(self.folder / str(step), LOOP)["metrics"]
        except (OSError, ValueError, KeyError):
            return None  # The one being saved, or one whose deletion a crash cut short.


def newest_and_best(
    folder: Path, keep_last: int, best_metric: str | None, best_mode: str, keep_best: int
) -> preservation_policy.PreservationPolicy:
    """Keeps the `keep_last` newest checkpoints and, given a metric, the `keep_best` best by it as well.

    Orbax's own `max_to_keep` with a `best_fn` keeps the best only, and a restart loses the newest.
    """
    policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(keep_last)]
    if best_metric is not None:
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[best_metric],
            reverse=best_mode == "min",  # Orbax keeps the end of the sorted list.
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        policies.append(_BestByScoreOnDisk(folder, best))
    return preservation_policy.AnyPreservationPolicy(policies)
