"""Rewards that cannot be part of a program: computed on host cores while the devices work on."""

import itertools
import multiprocessing
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.rewards.pdms import PARTS
from recogdrive.pdm.rewards.reward import Batch, RewardScores, known_scenes
from recogdrive.pdm.rewards.scene_layout import SceneLayout
from recogdrive.pdm.rewards.workers import begin, begin_arguments, run_task
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scorer import PdmScorer
from recogdrive.pdm.scores import REINFORCEMENT_WEIGHTS, ScoreWeights

HostFunction = Callable[
    [PdmScene, Float[np.ndarray, "G 8 3"]], tuple[Float[np.ndarray, "G"], Mapping[str, Float[np.ndarray, "G"]]]
]
FindRecord = Callable[[int], PdmScene]

LISTED_IN_LOG = 100
_NOBODY = -1
"""Ticket of a scene without record."""
_TICKETS = 2**31


@gin.register
class HostReward:
    """A reward by an ordinary function of record and rollouts, one scene a call.

    `submit` hands the rollouts over and returns at once; `collect` waits for what is not finished. Scenes are found by
    the batch's `index` in the records that `attach` was given. A scene without record, one whose record cannot be read
    and one on which the function fails or returns something else than it should is NaN; the error is in the log.

    Args:
      function: (record, (G, 8, 3) float32 rollouts in the initial rear-axle frame) -> (G,) reward and (G,) parts by
        name.
      part_names: Of its parts; by default what the function says itself in an attribute of this name.
      workers: Processes, to which function and records are pickled; 0 for a thread of this process. A run on several
        devices of the CPU needs processes: programs that wait hold the threads that a function with JAX in it needs.

    Raises:
      ValueError: The parts are not named, or there are fewer than 0 workers.
    """

    layouts: tuple[SceneLayout, ...] = ()
    uses_previous_plans = False

    def __init__(self, function: HostFunction, part_names: Sequence[str] | None = None, workers: int = 0) -> None:
        names = getattr(function, "part_names", None) if part_names is None else part_names
        if names is None or isinstance(names, str):
            raise ValueError(f"HostReward.part_names={names!r} must list the parts that {function!r} returns.")
        if workers < 0:
            raise ValueError(f"HostReward.workers={workers} must not be negative; 0 is a thread of this process.")
        self.function = function
        self.part_names = tuple(names)
        self.workers = workers
        self._records: FindRecord | None = None
        self._pool: Executor | None = None
        self._task: Callable[..., Any] | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._begun: dict[int, tuple[int, Future]] = {}

    def attach(self, records: FindRecord) -> None:
        """Says where records are found.

        Raises:
          ValueError: Function or records cannot be sent to worker processes.
        """
        self.close()
        if self.workers:
            begin_arguments(_Scoring(self.function, records))
        self._records = records

    def submit(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> Int[Array, "B G"]:
        """Hands rollouts over; returns a ticket for each scene, repeated for each rollout.

        Raises:
          ValueError: There are no records (`attach`), the batch has no `index`, or a thread cannot serve the devices.
        """
        if self._records is None:
            raise ValueError("HostReward has no records to score in; call attach(records) before the first step.")
        if "index" not in batch:
            raise ValueError("The batch lacks index, the position of each sample in the split, which HostReward reads.")
        if not self.workers and jax.default_backend() == "cpu" and jax.local_device_count() > 1:
            raise ValueError(
                f"HostReward.workers=0 could wait for ever beside {jax.local_device_count()} devices of the CPU, whose "
                f"programs share their threads with it; use processes (HOST_WORKERS=1)."
            )
        count, group = trajectories.shape[:2]
        arguments = batch["index"], known_scenes(batch, count), jnp.asarray(trajectories, jnp.float32)
        tickets = io_callback(self._begin, jax.ShapeDtypeStruct((count,), jnp.int32), *jax.lax.stop_gradient(arguments))
        return jnp.broadcast_to(tickets[:, None], (count, group))

    def collect(self, pending: Int[Array, "B G"], after: Array) -> RewardScores:
        """The scores, waited for once `after` has been computed."""
        count, group = pending.shape
        # All of `after` in one number: it is what makes the program wait late.
        done = jnp.sum(jax.lax.stop_gradient(after).astype(jnp.float32))
        shape = jax.ShapeDtypeStruct((count, 1 + len(self.part_names), group), jnp.float32)
        found = io_callback(self._finish, shape, pending, done)
        return RewardScores(found[:, 0], {name: found[:, 1 + k] for k, name in enumerate(self.part_names)})

    def close(self) -> None:
        """Ends thread or processes, after what they are at; the next rollouts start them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(
        self, index: Int[np.ndarray, "B"], known: Bool[np.ndarray, "B"], trajectories: Float[np.ndarray, "B G 8 3"]
    ) -> Int[np.ndarray, "B"]:
        """On the host: one task a scene."""
        index, known, trajectories = map(np.asarray, (index, known, trajectories))
        tickets = np.full(len(index), _NOBODY, np.int32)
        for b in np.flatnonzero(known):
            number = next(self._numbers) % _TICKETS
            self._begun[number] = int(index[b]), self._sent(int(index[b]), trajectories[b])
            tickets[b] = number
        return tickets

    def _sent(self, index: int, trajectories: Float[np.ndarray, "G 8 3"]) -> Future:
        """A task that is on its way, or has failed already."""
        try:
            return self._send(index, trajectories)
        except Exception as error:  # As whatever goes wrong later, this costs the scene only.
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def _send(self, index: int, trajectories: Float[np.ndarray, "G 8 3"]) -> Future:
        with self._lock:
            if self._pool is None:
                self._pool = self._new_pool()
            try:
                return self._pool.submit(self._task, index, trajectories)
            except BrokenExecutor:  # A worker was killed before, and all are gone with it.
                self._pool = self._new_pool()
                return self._pool.submit(self._task, index, trajectories)

    def _new_pool(self) -> Executor:
        scoring = _Scoring(self.function, self._records)
        if self.workers:
            self._task = run_task
            spawning = multiprocessing.get_context("spawn")  # A fork of a process that uses JAX may hang.
            pool: Executor = ProcessPoolExecutor(self.workers, spawning, begin, begin_arguments(scoring))
        else:
            self._task = scoring
            pool = ThreadPoolExecutor(1, "host_reward")
        weakref.finalize(self, pool.shutdown, cancel_futures=True)
        return pool

    def _finish(self, tickets: Int[np.ndarray, "B G"], done: Float[np.ndarray, ""]) -> Float[np.ndarray, "B P G"]:
        """On the host: waits."""
        del done
        tickets = np.asarray(tickets)
        found = np.full((len(tickets), 1 + len(self.part_names), tickets.shape[1]), np.nan, np.float32)
        for b, number in enumerate(tickets[:, 0].tolist()):
            if number == _NOBODY:
                continue
            index, task = self._begun.pop(number)
            try:
                found[b] = self._arranged(task.result(), tickets.shape[1])
            except Exception as error:  # Whatever a user's function raises costs this scene only.
                logging.log_first_n(
                    logging.ERROR, "no reward for sample %d: %s: %s", LISTED_IN_LOG, index, type(error).__name__, error
                )
        return found

    def _arranged(self, result: Any, group: int) -> Float[np.ndarray, "P G"]:
        """Total and parts of a scene, one row each.

        Raises:
          ValueError: They are not what the function should return.
        """
        total, parts = result
        if set(parts) != set(self.part_names):
            raise ValueError(f"the function returned the parts {sorted(parts)}, not {sorted(self.part_names)}")
        rows = [np.asarray(values, np.float32) for values in (total, *(parts[name] for name in self.part_names))]
        for name, row in zip(("the reward", *self.part_names), rows, strict=True):
            if row.shape != (group,):
                raise ValueError(f"the function returned {name} of shape {row.shape}, not ({group},)")
        return np.stack(rows)


class _Scoring:
    """What a worker does: reads the record, calls the function."""

    def __init__(self, function: HostFunction, records: FindRecord) -> None:
        self._function = function
        self._records = records

    def __call__(self, index: int, trajectories: Float[np.ndarray, "G 8 3"]) -> Any:
        return self._function(self._records(index), trajectories)


@gin.register
class HostPdms:
    """PDMS in float64 as a host function, to start from when writing another: what `PdmsReward` gives in float32.

    Args:
      weights: See `PdmsReward`.
    """

    part_names = ("pdms", *PARTS)

    def __init__(self, weights: ScoreWeights | None = None) -> None:
        self.weights = REINFORCEMENT_WEIGHTS if weights is None else weights
        self._scorer: PdmScorer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"weights": self.weights, "_scorer": None}

    def __call__(
        self, record: PdmScene, trajectories: Float[np.ndarray, "G 8 3"]
    ) -> tuple[Float[np.ndarray, "G"], dict[str, Float[np.ndarray, "G"]]]:
        """See `HostReward`."""
        if self._scorer is None:
            self._scorer = PdmScorer(self.weights, dtype="float64")
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            scores = self._scorer.score([record], np.asarray(trajectories)[None])
        return scores.score[0], {"pdms": scores.score[0]} | {name: getattr(scores, name)[0] for name in PARTS}


host_pdms = HostPdms()
"""PDMS in float64: `HostReward(host_pdms)`."""
