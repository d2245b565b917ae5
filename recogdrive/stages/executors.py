"""Where independent pieces of a stage's work run: in this process, in several, or on the machines of a Ray cluster."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import gin

from recogdrive.cores import usable_cores

Task = Any
Result = Any
Work = Callable[[Task], Result]

_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
"""Environment of workers: one core each, no accelerator."""


class WorkerError(RuntimeError):
    """A worker that is gone; the message says what to do."""


class Executor(Protocol):
    """Runs tasks in any order, several at once."""

    def run(self, make_work: Callable[[], Work], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results as they come.

        Args:
          make_work: Called once in every worker; what it returns is called with one task after the other. Pickled.
          tasks: Pickled.

        Raises:
          WorkerError: A worker died.
        """
        ...


@gin.register
class InProcess:
    """One task after the other, in this process and on whatever devices it has."""

    def run(self, make_work: Callable[[], Work], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order of the tasks."""
        work = make_work()
        for task in tasks:
            yield work(task)


@gin.register
class ProcessPool:
    """Processes of this machine, each on one thread of the CPU.

    Args:
      workers: How many; by default one for every core this process may use.

    Raises:
      ValueError: There would be none.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"ProcessPool.workers={workers} must be positive, or None for one a core.")
        self._workers = workers

    def run(self, make_work: Callable[[], Work], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results as they come; leaving early ends the workers after their current tasks."""
        if not tasks:
            return
        count = min(self._workers or len(usable_cores()), len(tasks))
        with _environment(_ONE_THREAD):
            pool = ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(make_work,)
            )
            try:
                waiting = {pool.submit(_work, task) for task in tasks}
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            except BrokenProcessPool as error:
                raise WorkerError(
                    f"One of {count} worker processes died, as when memory runs out or it is killed. What is finished "
                    "is kept; run the same command again to continue, with fewer workers if memory was short "
                    "(--gin_bindings WORKERS=N)."
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


@gin.register
class RayPool:
    """Actors of a Ray cluster, each on one CPU; needs the extra `recogdrive[ray]` on every machine.

    Folders must have the same paths on all machines, as on a shared file system.

    Args:
      address: Of the cluster, such as "auto" or "ray://head:10001"; None starts one on this machine.
      workers: How many actors; by default one for every CPU of the cluster.

    Raises:
      ValueError: There would be none.
      ImportError: Ray is not installed.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"RayPool.workers={workers} must be positive, or None for one a CPU.")
        try:
            import ray
        except ImportError as error:
            raise ImportError("RayPool needs Ray: pip install 'recogdrive[ray]', on every machine.") from error
        self._ray = ray
        self._address = address
        self._workers = workers

    def run(self, make_work: Callable[[], Work], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results as they come."""
        if not tasks:
            return
        ray = self._ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address=self._address, runtime_env={"env_vars": _ONE_THREAD}, log_to_driver=False)
        try:
            count = min(self._workers or int(ray.cluster_resources().get("CPU", 1)), len(tasks))
            shared = ray.put(make_work)
            actors = [ray.remote(num_cpus=1)(_RayWorker).remote(shared) for _ in range(count)]
            yield from ray.util.ActorPool(actors).map_unordered(lambda actor, task: actor.work.remote(task), tasks)
        except ray.exceptions.RayActorError as error:
            reason = str(error).splitlines()[0]
            raise WorkerError(
                f"A Ray actor died: {reason} What is finished is kept; run the same command again to continue."
            ) from error
        finally:
            ray.shutdown()


class _RayWorker:
    """What an actor holds."""

    def __init__(self, make_work: Callable[[], Work]) -> None:
        _use_one_thread()
        self._work = make_work()

    def work(self, task: Task) -> Result:
        return self._work(task)


_process_work: Work | None = None
"""What this worker process does; set once by `_begin`."""


def _begin(make_work: Callable[[], Work]) -> None:
    """First thing in a worker process."""
    global _process_work
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _use_one_thread()
    _process_work = make_work()


def _work(task: Task) -> Result:
    return _process_work(task)


def _exit_with_parent() -> None:
    """Ends this process with its parent: a worker whose parent was killed would wait for tasks for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _use_one_thread() -> None:
    """Starts JAX while it sees one core, which is how it sizes its pool of threads, without staying on that core."""
    import jax

    cores = usable_cores()
    _use_cores({min(cores)})
    jax.devices()
    _use_cores(cores)


def _use_cores(cores: set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that child processes inherit, and restores them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
