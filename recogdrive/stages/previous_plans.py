"""What the frozen reference policy planned half a second before each training scene, for rewards that compare plans."""

import zlib
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float

from recogdrive.data.samples import Sample, TrainingSamples, filled_batches
from recogdrive.data.types import FUTURE_FRAMES
from recogdrive.evaluation.frame_pairs import previous_frames
from recogdrive.evaluation.planner_agent import PlannerAgent
from recogdrive.pdm.rewards.samples import UNUSABLE, Records
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.state import STATE_SIZE

PLANS_FILE = "previous_plans.npz"
GAP_STEPS = 5
"""Steps of 0.1 s between a scene and the one before: frames of 2 Hz that follow each other."""

Table = dict[str, np.ndarray]
"""Entry -> its values of all samples, in their order."""


def previous_plan_shapes() -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape, without axis of scenes, and type of each entry."""
    return {
        "previous/plan": ((FUTURE_FRAMES, 3), np.float32),
        "previous/ego_state": ((STATE_SIZE,), np.float32),
        "previous/known": ((), np.bool_),
        "current/ego_state": ((STATE_SIZE,), np.float32),
    }


class WithPreviousPlans:
    """Samples with the entries of `previous_plan_shapes`.

    Args:
      samples: Of a split.
      plans: See `previous_plans`.
    """

    def __init__(self, samples: TrainingSamples, plans: Table) -> None:
        self._samples = samples
        self._plans = plans

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` of the split."""
        return self._samples[index] | {name: values[index] for name, values in self._plans.items()}


def previous_plans(
    run_dir: Path, records: Records, samples: TrainingSamples, agent: PlannerAgent, batch_size: int
) -> Table:
    """Plans of the reference policy for every scene whose successor, half a second later, is in the split too.

    They are made once and kept in the run's folder, so that a continued run compares with the same ones.

    Args:
      run_dir: The run's folder.
      records: Of the split.
      samples: Of the split; what the policy sees.
      agent: The reference policy.
      batch_size: Scenes planned at once.

    Raises:
      ValueError: No scene of the split has another one half a second before it.
    """
    file = run_dir / PLANS_FILE
    if file.exists():
        with np.load(file) as stored:
            table = dict(stored)
        if len(table["previous/known"]) == len(samples):
            return table
    found = [_record_or_none(records, i) for i in range(len(samples))]
    logs, times = zip(*(("", 0) if r is None else (r.log_name, r.timestamp_us) for r in found), strict=True)
    pairs = previous_frames(logs, times, [record is not None for record in found])
    pairs = {later: earlier for later, (earlier, steps) in pairs.items() if steps == GAP_STEPS}
    if not pairs:
        raise ValueError(
            f"None of the {len(samples)} training scenes has another one half a second before it, so plans cannot be "
            "compared. Train on consecutive frames (SyntheticTown.frames_per_drive = 2, SceneFilter.frame_interval = "
            "1), or leave ExtendedComfort out."
        )
    logging.info("%d of %d training scenes have one half a second before", len(pairs), len(samples))
    earlier = sorted(set(pairs.values()))
    planned = dict(zip(earlier, _plan(records, samples, agent, earlier, batch_size), strict=True))
    table = {name: np.zeros((len(samples), *shape), dtype) for name, (shape, dtype) in previous_plan_shapes().items()}
    for index, record in enumerate(found):
        if record is not None:
            table["current/ego_state"][index] = record.ego_state
        if index in pairs:
            before = pairs[index]
            table["previous/plan"][index] = planned[before]
            table["previous/ego_state"][index] = found[before].ego_state
            table["previous/known"][index] = True
    temporary = file.with_suffix(".tmp.npz")
    np.savez(temporary, **table)
    temporary.replace(file)
    return table


def _record_or_none(records: Records, index: int) -> PdmScene | None:
    try:
        return records(index)
    except UNUSABLE:
        return None  # The survey has named it.


def _plan(
    records: Records, samples: TrainingSamples, agent: PlannerAgent, indices: list[int], batch_size: int
) -> Float[np.ndarray, "N 8 3"]:
    rows = (samples[index] | {"scene_id": np.uint32(zlib.crc32(records.tokens[index].encode()))} for index in indices)
    return np.concatenate([agent.plan_batches([batch]) for batch in filled_batches(rows, batch_size)])
